"""Classifiers by name: the paper's ten networks for small images, and those of the libraries."""

import json
from functools import lru_cache, partial

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import segdeconv
from segdeconv.models import CLASSIFIERS, create_classifier, create_model, load_weights
from segdeconv.models.small_networks import DualPathBlock, InvertedResidual, PreActBlock
from segdeconv.operators import Deconv2d, operator_layers
from segdeconv.surgery import fold

PAPER = {  # millions of parameters with whitening layers, as the paper prints them
    "vgg16": 14.71,
    "resnet18": 11.17,
    "preact_resnet18": 11.17,
    "densenet121": 6.88,
    "resnext29_32x4d": 4.76,
    "mobilenet_v2": 2.28,
    "dpn92": 34.18,
    "pnasnet_a": 0.13,
    "senet18": 11.26,
    "efficientnet_b0": 2.91,
}
WITH_BATCHNORM = {  # of the usual CIFAR networks, which the paper's code starts from
    "vgg16": 14_728_266,
    "resnet18": 11_173_962,
    "preact_resnet18": 11_171_146,
    "densenet121": 6_956_298,
    "resnext29_32x4d": 4_774_218,
    "mobilenet_v2": 2_296_922,
    "dpn92": 34_236_634,
    "pnasnet_a": 130_646,
    "senet18": 11_260_354,
    "efficientnet_b0": 2_912_089,
    "vgg11": 9_231_114,
}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def on_meta(name, **arguments):
    """A classifier without memory: for shapes and counts."""
    with torch.device("meta"):
        return create_classifier(name, **arguments)


@lru_cache
def with_batchnorm(name, in_channels=3):
    return on_meta(name, operator="batchnorm", in_channels=in_channels)


@lru_cache
def as_released(name):
    """Efficientnet_b0 keeps the batch norms of its blocks, as in the paper's code."""
    options = {"preset": "released", "options_by_name": CLASSIFIERS[name].released}
    return on_meta(name, operator_options=options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def plain(name, **arguments):
    torch.manual_seed(0)
    return create_classifier(name, operator="batchnorm", **arguments)


@pytest.fixture(scope="module", params=CLASSIFIERS)
def trained(request):
    """Each of the ten with whitening layers, after one training step on 16 x 16 images."""
    torch.manual_seed(0)
    model = create_classifier(request.param, operator_options={"block": 8})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(model(images(3, 3, 16, 16)), torch.tensor([0, 4, 9]))
    loss.backward()
    optimizer.step()
    return model


# --------------------------------------------------------------------------------- the ten networks


def test_the_ten_networks_of_the_paper_are_there_and_vgg11():
    assert set(CLASSIFIERS) == {*PAPER, "vgg11"}


@pytest.mark.parametrize("name", PAPER)
def test_with_whitening_the_parameters_are_those_of_the_paper(name):
    assert parameters(as_released(name)) / 1e6 == pytest.approx(
        PAPER[name], abs=0.01
    )  # vgg16 is 14.7198


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_with_batchnorm_the_parameters_are_those_of_the_usual_cifar_networks(name):
    assert parameters(with_batchnorm(name)) == WITH_BATCHNORM[name]


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (1, 33, 47), (3, 96, 64)]
)
def test_logits_come_from_images_of_any_channels_and_size(name, channels, height, width):
    with torch.device("meta"):
        logits = with_batchnorm(name, channels)(torch.empty(2, channels, height, width))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", PAPER)  # vgg11 pools behind its first convolution anywhere
def test_the_stem_has_stride_1_and_nothing_pools_before_the_first_block(name):
    model = with_batchnorm(name)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    sizes = []
    hook = convs[1].register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    with torch.device("meta"), hook:
        model(torch.empty(2, 3, 32, 32))
    assert convs[0].stride == (1, 1) and sizes == [32]
    assert convs[0].kernel_size == ((1, 1) if name == "resnext29_32x4d" else (3, 3))


def test_every_convolution_whitens_and_no_batchnorm_is_left(trained):
    assert not any(isinstance(m, _BatchNorm) for m in trained.modules())
    convs = [m for m in trained.modules() if isinstance(m, nn.Conv2d)]
    assert all(type(conv) is Deconv2d for conv in convs)
    report = trained.surgery_report
    assert report.counts["swapped"] == len(convs) and not report.names("skipped")
    assert report.names("kept") == [trained.head_name] and report.uncalled == ()


def test_a_training_step_gives_every_parameter_a_finite_gradient(trained):
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name


def test_the_folded_network_is_plain_and_gives_the_same_logits(trained):
    folded = fold(trained)
    assert not any(isinstance(m, operator_layers()) for m in folded.modules())
    x = images(2, 3, 16, 16)
    trained.eval()
    with torch.no_grad():
        logits = trained(x)
        assert logits.isfinite().all() and logits.std() > 0
        torch.testing.assert_close(folded(x), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_released_options_find_their_layers(name):
    model = as_released(name)
    steps = {m.settings.n_iter for m in model.modules() if isinstance(m, Deconv2d)}
    first = next(m for m in model.modules() if isinstance(m, Deconv2d))
    stem = {"vgg16": 15, "vgg11": 15, "resnet18": 5, "densenet121": 5}.get(name, 10)
    assert first.settings.n_iter == stem and first.settings.freeze == (stem > 5)
    others = {"mobilenet_v2": {1, 5}, "resnext29_32x4d": {3, 5}, "efficientnet_b0": set()}
    assert steps == others.get(name, {5}) | {stem}


def test_released_efficientnet_whitens_its_stem_only():
    counts = as_released("efficientnet_b0").surgery_report.counts
    assert counts == {"swapped": 1, "removed": 1, "skipped": 82 + 50, "kept": 1}


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4.1.conv2"), ("vgg16", "features.40")]
)
def test_every_layer_starts_from_torchs_own_initialisation(name, layer):
    weight = plain(name).network.get_submodule(layer).weight.detach()
    assert weight.std() == pytest.approx((3 * 512 * 9) ** -0.5, rel=0.01)


def test_twins_of_one_seed_differ_in_the_operator_only():
    torch.manual_seed(0)
    weights = {n: p for n, p in create_classifier("pnasnet_a").named_parameters() if p.dim() == 4}
    twin = {n: p for n, p in plain("pnasnet_a").named_parameters() if p.dim() == 4}
    assert list(weights) == list(twin)
    assert all(torch.equal(weights[name], twin[name]) for name in twin)


def test_the_config_builds_the_model_again():
    model = on_meta("senet18", num_classes=4, operator_options={"block": 8}, in_channels=1)
    config = json.loads(json.dumps(model.config))
    assert on_meta(**config).state_dict().keys() == model.state_dict().keys()


def test_the_package_exports_it():
    assert segdeconv.create_classifier is create_classifier


# ------------------------------------------------------------------------- against the libraries


def stemmed(network, size=3):
    """A network of timm with a stem of stride 1, without early pooling."""
    network.conv1 = nn.Conv2d(3, 64, size, padding=size // 2, bias=False)
    network.maxpool = nn.Identity()
    return network


def timm_resnext29():
    network = stemmed(ResNet(Bottleneck, (3, 3, 3, 1), 10, cardinality=32, base_width=4), size=1)
    network.layer4, network.fc = nn.Identity(), nn.Linear(1024, 10)
    return network


def timm_densenet121():
    network = timm.create_model("densenet121", num_classes=10)
    network.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.features.norm0 = network.features.pool0 = nn.Identity()
    return network


def timm_vgg(name):
    with torch.device("meta"):  # its classifier has 120 million parameters
        features = timm.create_model(name).features
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)
    return nn.Sequential(features.to_empty(device="cpu"), *head)


@pytest.mark.parametrize(
    ("name", "build", "rename"),
    [
        ("resnet18", lambda: stemmed(timm.create_model("resnet18", num_classes=10)), {}),
        ("resnext29_32x4d", timm_resnext29, {}),
        ("densenet121", timm_densenet121, {}),
        ("vgg16", partial(timm_vgg, "vgg16_bn"), {"features.": "0.", "classifier.": "3."}),
        ("vgg11", partial(timm_vgg, "vgg11_bn"), {"features.": "0.", "classifier.": "3."}),
    ],
)
def test_a_network_of_the_libraries_is_theirs(name, build, rename):
    ours = plain(name).eval()
    for norm in (m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)  # fresh norms hide an activation too many before them
    state = ours.network.state_dict()
    for old, new in rename.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    theirs = build().eval()
    theirs.load_state_dict(state)
    with torch.no_grad():
        x = images(2, 3, 32, 32)
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_preactivation_block_without_its_last_convolution_is_the_identity():
    block, x = PreActBlock(8, 8, 1, squeeze=False), images(2, 8, 5, 5)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x)


def test_an_inverted_residual_adds_its_input_at_stride_1_only():
    block, x = InvertedResidual(8, 8, 6, 1, squeeze=False), images(2, 8, 5, 5)
    nn.init.zeros_(block.project[1].weight)
    assert torch.equal(block(x), x)
    block = InvertedResidual(8, 16, 6, 2, squeeze=False)
    nn.init.zeros_(block.project[1].weight)
    assert torch.equal(block(x), torch.zeros(2, 16, 3, 3))


def test_a_dual_path_block_adds_the_first_channels_and_appends_the_rest():
    block, x = DualPathBlock(12, 32, 8, 4, 1, first=False), images(2, 12, 5, 5).relu()
    nn.init.zeros_(block.body[-1].weight)
    nn.init.ones_(block.body[-1].bias)
    expected = torch.cat([x[:, :8] + 1, x[:, 8:], torch.ones(2, 4, 5, 5)], 1)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    "name",
    ["shufflenet_v2_x0_5", "tu-resnet10t", "tu-regnety_002", "tu-tf_efficientnetv2_b0", "mit_b0"],
)
def test_other_networks_get_a_small_stem(name):
    model = plain(name, num_classes=3, in_channels=1).eval()
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (stem.in_channels, stem.kernel_size, stem.stride) == (1, (3, 3), (1, 1))
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    with torch.no_grad():
        assert model(images(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", ["tu-resnet10t", "efficientnet-b0"])
def test_other_networks_are_converted_too(name):
    model = create_classifier(name, num_classes=3, operator_options={"block": 8})
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    assert model(images(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet18", lambda: torchvision.models.resnet18(num_classes=3)),
        ("tu-resnet10t", lambda: timm.create_model("resnet10t", num_classes=3)),
    ],
)
def test_for_large_images_it_is_the_librarys_network(name, build):
    ours = plain(name, num_classes=3, small_input=False).eval()
    theirs = build().eval()
    theirs.load_state_dict(ours.network.state_dict())
    with torch.no_grad():
        x = images(1, 3, 64, 64)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["vgg16", "efficientnet_b0"])
def test_networks_of_two_sizes_have_batchnorms_in_both(name):
    model = on_meta(name, operator="batchnorm", small_input=False, in_channels=4)
    assert parameters(model) != WITH_BATCHNORM[name]
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


# -------------------------------------------------------------------------------------- weights


@pytest.fixture
def pretrained(tmp_path):
    """A file of torchvision's ResNet-18 for three classes, and that network."""
    torch.manual_seed(7)
    network = torchvision.models.resnet18(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pt")
    return network, tmp_path / "resnet18.pt"


def test_a_librarys_file_loads_whole(pretrained):
    network, path = pretrained
    model = plain("resnet18", num_classes=3, small_input=False, weights=path).eval()
    assert model.weights_report.fresh == () and not model.weights_report.dropped
    with torch.no_grad():
        x = images(1, 3, 64, 64)
        torch.testing.assert_close(model(x), network(x))


def test_for_other_classes_the_last_layer_is_fresh_and_named(pretrained):
    network, path = pretrained
    model = create_classifier("resnet18", num_classes=5, small_input=False, weights=path)
    report = model.weights_report
    assert report.dropped == {"fc": 2} and report.fresh == ("network.fc",) and report.before_surgery
    assert torch.equal(model.network.layer1[0].conv1.weight, network.layer1[0].conv1.weight)


def test_a_large_stem_does_not_fit_a_small_one(pretrained):
    with pytest.raises(ValueError, match=r"does not fit resnet18: .*conv1.weight is \(64, 3, 7, 7"):
        create_classifier("resnet18", num_classes=3, weights=pretrained[1])


def test_a_file_of_another_network_is_refused(pretrained):
    with pytest.raises(ValueError, match=r"does not fit pnasnet_a: \d+ keys missing"):
        create_classifier("pnasnet_a", weights=pretrained[1])


def test_a_whitened_classifier_is_loaded_again(tmp_path):
    options = {"operator_options": {"block": 8}, "num_classes": 4}
    model = create_classifier("pnasnet_a", **options)
    model(images(2, 3, 16, 16))
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    again = create_classifier("pnasnet_a", weights=path, **options).eval()
    other = create_classifier("pnasnet_a", **options).eval()
    load_weights(other, path)
    with torch.no_grad():
        x = images(2, 3, 16, 16)
        logits = model.eval()(x)
        assert torch.equal(again(x), logits) and torch.equal(other(x), logits)


def test_a_plain_file_is_not_loaded_over_whitening_layers(pretrained):
    model = create_classifier("resnet18", num_classes=3, small_input=False)
    with pytest.raises(ValueError, match=r"create_classifier as weights="):
        load_weights(model, pretrained[1])


def test_a_classifier_gives_its_encoder_to_a_segmentation_model(tmp_path):
    torch.manual_seed(1)
    classifier = create_classifier("resnet18", small_input=False, operator_options={"block": 8})
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    model = create_model(
        "fpn",
        "resnet18",
        3,
        operator_options={"block": 8},
        weights=tmp_path / "classifier.pt",
    )
    assert model.weights_report.part == "encoder" and model.weights_report.dropped == {"fc": 2}
    ours, theirs = model.encoder.layer4[1].conv2, classifier.network.layer4[1].conv2
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.running_deconv, theirs.running_deconv)


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet81"},
            r"unknown network 'resnet81'; did you mean 'resnet18'\? .*listed by",
        ),
        ({"name": "regnety_004"}, r"did you mean 'tu-regnety_004'"),
        ({"name": "qqqqqqqq"}, r"unknown network 'qqqqqqqq'; they are listed by .*CLASSIFIERS"),
        ({"name": None}, r"name=None: expected the name of a network"),
        ({"num_classes": 0}, r"num_classes=0: expected a whole number of 1 or more"),
        ({"num_classes": "10"}, r"num_classes='10': expected"),
        ({"in_channels": True}, r"in_channels=True: expected"),
        ({"operator": "decon"}, r"unknown operator 'decon'; did you mean 'deconv'"),
        ({"operator_options": {"blok": 8}}, r"has no option 'blok'; did you mean 'block'"),
        ({"weights": "nowhere.pt"}, r"no weights file nowhere.pt"),
        (
            {"name": "preact_resnet18", "small_input": False},
            r"32 x 32 only; leave small_input=True",
        ),
        (
            {"name": "tu-vit_tiny_patch16_224"},
            r"cannot be built for images of 32 x 32 .*small_input=False keeps its own stem",
        ),
    ],
)
def test_what_does_not_go_is_said_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        create_classifier(**{"name": "pnasnet_a", **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_a_network_of_several_outputs_is_refused():
    with pytest.raises(ValueError, match=r"'googlenet' gives several tensors"):
        on_meta("googlenet")


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_refused_in_a_sentence(channels):
    model = on_meta("resnet18", operator="batchnorm")
    with pytest.raises(ValueError, match=f"images of {channels} channels: the model takes 3"):
        model(torch.empty(2, channels, 32, 32, device="meta"))


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match=r"give a single image as images\[None\]"):
        plain("pnasnet_a")(images(3, 32, 32))
