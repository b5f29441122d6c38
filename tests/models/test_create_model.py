"""Models by name: any image size, one calling convention, one sentence for what does not go."""

import copy
import json
import pickle

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation as torchvision_segmentation

from segdeconv.models import ARCHITECTURES, SegmentationOutput, create_model
from segdeconv.models.architectures import TRIED_ENCODERS
from segdeconv.operators import OPERATORS, Deconv2d
from segdeconv.surgery import fold


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def small(arch="unet", encoder="resnet18", num_classes=3, **arguments):
    torch.manual_seed(0)
    return create_model(arch, encoder, num_classes, **arguments)


ENCODER = {"dpt": "tu-resnet18", "fcn": "resnet50"} | dict.fromkeys(
    ("lraspp", "torchvision_deeplabv3"), "mobilenet_v3_large"
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_gives_logits_at_the_size_of_the_images(arch):
    model = small(arch, ENCODER.get(arch, "resnet18")).eval()
    with torch.no_grad():
        assert model(images(1, 3, 70, 101)).shape == (1, 3, 70, 101)


def test_the_twelve_decoders_of_smp_and_three_networks_of_torchvision_are_there():
    of_smp = set(smp.MODEL_ARCHITECTURES_MAPPING)
    assert set(ARCHITECTURES) == of_smp | {"fcn", "torchvision_deeplabv3", "lraspp"}


def test_an_image_is_padded_by_its_own_border_and_the_logits_are_cropped():
    model = small("linknet", operator="batchnorm").eval()
    x = images(1, 3, 40, 50)
    assert model.divisor == 32
    padded = F.pad(x, (0, 14, 0, 24), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.network(padded)[..., :40, :50])


def test_an_image_of_fitting_size_goes_to_the_network_as_it_is():
    torch.manual_seed(0)
    model = small("fpn", operator="batchnorm").eval()
    torch.manual_seed(0)
    network = smp.FPN("resnet18", encoder_weights=None, classes=3).eval()
    x = images(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(model(x), network(x))


@pytest.mark.parametrize(
    ("arch", "encoder", "divisor"),
    [
        ("unet", "resnet18", 1),
        ("unet", "tu-hrnet_w18_small", 32),  # smp says that its U-Net takes any size
        ("pspnet", "resnet18", 8),
        ("deeplabv3plus", "resnet18", 16),
        ("pan", "resnet18", 16),
        ("fcn", "resnet50", 1),
    ],
)
def test_the_divisor_is_what_the_network_really_needs(arch, encoder, divisor):
    assert small(arch, encoder, operator="batchnorm").divisor == divisor


def test_images_below_the_least_size_are_padded_to_it():
    model = small("pan", operator="batchnorm").eval()
    assert model.min_size == 128
    with torch.no_grad():
        assert model(images(1, 3, 20, 200)).shape == (1, 3, 20, 200)


def test_a_network_of_torchvision_keeps_its_function():
    torch.manual_seed(0)
    network = torchvision_segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    model = small("lraspp", "mobilenet_v3_large", operator="batchnorm").eval()
    x = images(1, 3, 45, 70)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x)["out"])


def test_logits_have_the_size_of_the_images_whatever_the_options():
    model = small("pspnet", upsampling=1, operator="batchnorm").eval()
    with torch.no_grad():
        assert model(images(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("arch", ["unet", "lraspp"])
def test_images_may_have_other_channels(arch):
    model = small(arch, ENCODER.get(arch, "resnet18"), in_channels=5).eval()
    with torch.no_grad():
        assert model(images(1, 5, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("operator", OPERATORS)
def test_twins_of_one_seed_differ_in_the_operator_only(operator):
    model, twin = small(operator=operator), small(operator="batchnorm")
    weights = {n: p for n, p in twin.named_parameters() if p.dim() == 4}
    ours = {n: p for n, p in model.named_parameters() if p.dim() == 4}
    assert list(ours) == list(weights)
    assert all(torch.equal(ours[name], weights[name]) for name in ours)


def test_options_reach_the_operator_by_name_too():
    model = small(
        operator_options={
            "block": 8,
            "options_by_name": {"network.encoder.conv1": {"n_iter": 15}},
            "skip": ["network.segmentation_head.*"],
        }
    )
    assert model.network.encoder.conv1.settings.n_iter == 15
    assert type(model.network.segmentation_head[0]) is nn.Conv2d
    assert model.surgery_report.counts["skipped"] == 1


def test_the_report_names_layers_that_are_never_called():
    stopped = small("pspnet", encoder_depth=3).surgery_report
    assert len(stopped.uncalled) == 10 and stopped.uncalled[0].startswith("network.encoder.layer3")
    assert small("pspnet").surgery_report.uncalled == ()  # ours goes to the last stage


def test_pspnet_uses_all_stages_at_output_stride_8():
    encoder = small("pspnet", operator="batchnorm").encoder
    assert [tuple(f.shape[-2:]) for f in encoder(images(2, 3, 64, 64))][2:] == [(16, 16)] + 3 * [
        (8, 8)
    ]


# ---------------------------------------------------------------------------------- auxiliary head


@pytest.mark.parametrize(
    ("arch", "encoder", "stage"),
    [
        ("deeplabv3plus", "resnet18", "network.encoder.layer3"),
        ("fcn", "resnet50", "network.backbone.layer3"),
    ],
)
def test_the_auxiliary_head_sits_on_the_third_stage_and_works_in_training_only(
    arch, encoder, stage
):
    model = small(arch, encoder, aux_head=True)
    x = images(2, 3, 32, 48)
    output = model(x)
    assert isinstance(output, SegmentationOutput)
    assert output.logits.shape == output.aux.shape == (2, 3, 32, 48)
    output.aux.sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    last = stage.replace("layer3", "layer4")
    assert any(name.startswith(stage) for name in reached)
    assert not any(name.startswith(last) for name in reached)
    assert {id(p) for p in model.aux_parameters()} <= {id(p) for p in model.aux_head.parameters()}
    assert torch.is_tensor(model.eval()(x))


def test_the_auxiliary_head_does_not_change_the_logits():
    x = images(2, 3, 32, 32)
    with_aux = small("fpn", aux_head=True, operator="batchnorm", decoder_dropout=0.0)
    without = small("fpn", operator="batchnorm", decoder_dropout=0.0)
    torch.testing.assert_close(with_aux(x).logits, without(x))


def test_the_auxiliary_head_belongs_to_the_operator_too():
    assert any(isinstance(m, Deconv2d) for m in small(aux_head=True).aux_head.modules())


@pytest.mark.parametrize(
    ("arch", "encoder"), [("lraspp", "mobilenet_v3_large"), ("dpt", "tu-resnet18")]
)
def test_architectures_without_features_for_it_refuse_an_auxiliary_head(arch, encoder):
    with pytest.raises(ValueError, match=r"auxiliary"):
        small(arch, encoder, aux_head=True)


# --------------------------------------------------------------------------------------- freezing


def dropping():
    """An encoder with drop path, batch norms behind activations, and statistics of ours."""
    return small("fpn", "efficientnet-b0")


def test_statistics_and_weights_of_a_frozen_encoder_stand_still():
    model = dropping()
    model.freeze_encoder()
    before = copy.deepcopy(model.encoder.state_dict())
    decoder = model.network.decoder.p5.weight.detach().clone()
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images(2, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    assert all(torch.equal(before[k], v) for k, v in model.encoder.state_dict().items())
    assert not torch.equal(model.network.decoder.p5.weight, decoder)


def test_a_frozen_encoder_stays_in_evaluation_and_comes_back_when_it_is_unfrozen():
    model = dropping()
    for mode in (True, False, True):
        model.train(mode)
        model.freeze_encoder()
        assert not any(m.training for m in model.encoder.modules())
        assert model.network.decoder.training is mode
    model.unfreeze_encoder()
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.encoder_parameters())


def test_evaluation_after_freezing_repeats_bit_for_bit():
    model = dropping()
    model.freeze_encoder()
    model.eval()
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))


# ----------------------------------------------------------------------------------- copies, config


def test_a_model_can_be_built_again_from_its_config():
    model = small(
        "fpn",
        operator_options={"block": 8},
        aux_head=True,
        decoder_pyramid_channels=32,
    )
    again = create_model(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), again.eval()(x))


def test_a_model_survives_copy_and_pickle():
    model = small("linknet", "efficientnet-b0").eval()
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


def test_a_model_folds_to_plain_layers_and_still_takes_any_size():
    model = small("deeplabv3plus", aux_head=True).double()
    x = images(2, 3, 40, 50).double()
    model(x)
    plain = fold(model)
    homes = {type(m).__module__.split(".")[0] for m in plain.network.modules()}
    assert "segdeconv" not in homes
    torch.testing.assert_close(plain(x), model.eval()(x), rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "unett"}, r"unknown architecture 'unett'; did you mean 'unet'\?"),
        ({"operator": "decnov"}, r"unknown operator 'decnov'; did you mean 'deconv'\?"),
        ({"encoder": "resnet51"}, r"unknown encoder 'resnet51'; did you mean 'resnet5"),
        ({"encoder": "convnext_tiny"}, r"did you mean 'tu-convnext_tiny'\?"),
        ({"encoder": "tu-convnext_tny"}, r"did you mean 'tu-convnext_tiny'\?"),
        ({"num_classes": 0}, r"num_classes=0: expected a whole number of 1 or more"),
        ({"num_classes": "19"}, r"num_classes='19': expected a whole number of 1 or more"),
        ({"num_classes": True}, r"num_classes=True: expected a whole number"),
        ({"in_channels": 3.0}, r"in_channels=3.0: expected a whole number of 1 or more"),
        ({"decoder_use_nrom": False}, r"did you mean 'decoder_use_norm'\?"),
        ({"encoder": "tu-resnet18", "decoder_use_nrom": 1}, r"did you mean 'decoder_use_norm'\?"),
        ({"encoder": "tu-resnet18", "foo": 1}, r"foo=1: the encoder has no option 'foo'; take"),
        ({"encoder_weights": False}, r"give a local file as weights="),
        ({"activation": "softmax"}, r"the model returns logits"),
        ({"arch": "fcn", "encoder": "resnet18"}, r"'resnet18'; it takes resnet50, resnet101"),
        ({"arch": "fcn", "encoder": "resnet50", "depth": 5}, r"'fcn' has no option 'depth'"),
        ({"arch": "fpn", "output_stride": 8}, r"does not run on images of free size"),
        ({"arch": "dpt", "encoder": "tu-vit_tiny_patch16_224"}, r"dynamic_img_size=True"),
        ({"arch": "dpt"}, r"'dpt' cannot take the encoder 'resnet18' .*; use one of tu-resnet50"),
        ({"arch": "linknet", "encoder": "mit_b0"}, r"cannot take .*; use one of resnet50"),
        ({"arch": "deeplabv3", "encoder": "densenet121"}, r"dilated.*; use one of resnet50"),
        ({"arch": "pan", "encoder": "tu-hrnet_w18_small"}, r"most likely it cannot be dilated"),
        ({"arch": "pspnet", "encoder": "vgg11_bn"}, r"or encoder_depth=3"),
        ({"decoder_channels": [3, 4]}, r"cannot be .*: decoder_channels has 2 numbers"),
        ({"encoder_depth": 3}, r"has 5 numbers and encoder_depth is 3; give .* or encoder_depth=5"),
        ({"encoder_depth": 9}, r"encoder_depth=9: encoder_depth is 1 to 5 with this encoder"),
        ({"arch": "deeplabv3plus", "encoder_output_stride": 7}, r"_output_stride is 8 or 16$"),
        ({"decoder_channels": 5}, r"it takes a list of numbers where it got the int"),
        ({"operator_options": {"blcok": 3}}, r"no option 'blcok'; did you mean 'block'\?"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence_that_says_what_to_do(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        small(**arguments)
    assert "\n" not in str(caught.value)


def test_encoders_that_are_said_to_work_leave_out_those_that_are_refused():
    assert ARCHITECTURES["unet"].encoders == TRIED_ENCODERS
    assert "densenet121" not in ARCHITECTURES["deeplabv3"].encoders
    assert all(name.startswith("tu-") for name in ARCHITECTURES["dpt"].encoders)


def test_an_encoder_that_cannot_be_dilated_is_taken_by_the_shorter_pspnet():
    assert small("pspnet", "vgg11_bn", encoder_depth=3, operator="batchnorm").divisor == 8


def test_images_of_other_channels_are_refused_in_a_sentence():
    words = r"images of 1 channels: the model takes 3; build it with in_channels=1"
    with pytest.raises(ValueError, match=words):
        small(operator="batchnorm")(images(2, 1, 32, 32))
