"""Surgery: what is changed, what is not, and that both are said."""

import copy
import json
import pickle

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders._efficientnet import Conv2dStaticSamePadding
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils import prune

from segdeconv.operators import Deconv2d, DeconvTranspose2d, Delinear
from segdeconv.surgery import convert, fold, swap_modules, uncalled_layers


def images(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1),
    )


def types(model):
    return [type(m).__name__ for m in model.modules() if not list(m.children())]


def assert_plain(model):
    """No layer of the package is left, and every layer is torch's or timm's own."""
    homes = {type(m).__module__.split(".")[0] for m in model.modules()}
    assert "segdeconv" not in homes, homes


# ----------------------------------------------------------------------------------------- walker


def test_the_walker_replaces_what_matches_and_names_it_in_order():
    net = small_net()
    names = swap_modules(net, lambda _, m: type(m) is nn.BatchNorm2d, lambda *_: nn.Identity())
    assert names == ["1", "4"]
    assert type(net[1]) is nn.Identity and type(net[0]) is nn.Conv2d


def test_a_new_module_may_contain_the_type_that_it_replaces():
    net = small_net()
    swap_modules(net, lambda _, m: type(m) is nn.Conv2d, lambda _, old: nn.Sequential(old))
    assert type(net[0][0]) is nn.Conv2d


def test_a_module_with_two_names_stays_one_module():
    shared = nn.Conv2d(4, 4, 1)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    report = convert(net)
    assert net["a"] is net["b"][0] and type(net["a"]) is Deconv2d
    assert report.names("swapped") == ["a", "b.0"]


def test_an_error_while_building_leaves_the_network_as_it_was():
    net = small_net()
    before = types(net)
    with pytest.raises(ValueError, match="n_iter=0"):
        convert(net, options_by_name={"5": {"n_iter": 0}})
    assert types(net) == before and net[0].bias is None


# ------------------------------------------------------------------------------ what deconv does


def test_deconv_swaps_convolutions_and_removes_batch_norms():
    net = small_net()
    report = convert(net, "deconv", block=4)
    assert types(net) == [
        "Deconv2d",
        "Identity",
        "ReLU",
        "DeconvTranspose2d",
        "Identity",
        "Deconv2d",
    ]
    assert report.names("swapped") == ["0", "3", "5"] and report.names("removed") == ["1", "4"]
    assert net[0].settings.block == 4


def test_weights_keep_object_key_and_order():
    net = smp.Unet("resnet18", encoder_weights=None)
    before = {n: p for n, p in net.named_parameters() if p.dim() == 4}
    convert(net)
    after = {n: p for n, p in net.named_parameters() if p.dim() == 4}
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_an_optimiser_built_before_still_moves_the_weights():
    net = small_net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    convert(net)
    before = net[0].weight.detach().clone()
    net(images(2, 3, 8, 8)).square().sum().backward()
    optimiser.step()
    assert not torch.equal(net[0].weight, before)


def test_the_random_state_does_not_move_so_twins_start_alike():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    convert(small_net(), "batchnorm")
    torch.set_rng_state(state)
    net = small_net()
    state = torch.get_rng_state()
    convert(net)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_mode_dtype_and_layout_are_kept(training):
    net = small_net().double().train(training)
    convert(net)
    assert all(m.training is training for m in net.modules())
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_a_network_on_the_meta_device_stays_there():
    with torch.device("meta"):
        net = small_net()
    convert(net)
    assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {"meta"}


def test_convolutions_get_biases_of_zeros_when_norms_are_removed():
    net = small_net()
    net[3].weight.requires_grad_(False)
    report = convert(net)
    assert report.biases_added == 2
    assert torch.equal(net[0].bias, torch.zeros(8)) and net[0].bias.requires_grad
    assert not net[3].bias.requires_grad  # a frozen layer stays frozen


def test_without_removed_norms_convolutions_stay_without_bias():
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    assert convert(net).biases_added == 0
    assert net[0].bias is None


def test_hooks_move_to_the_new_layer_and_can_still_be_removed():
    net, seen = small_net(), []
    handles = [net[i].register_forward_hook(lambda m, *_: seen.append(type(m))) for i in (0, 1)]
    convert(net)
    net(images(2, 3, 8, 8))
    assert seen == [Deconv2d, nn.Identity]
    for handle in handles:
        handle.remove()
    net(images(2, 3, 8, 8))
    assert len(seen) == 2


def test_a_converted_network_trains_to_finite_gradients():
    net = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3, decoder_channels=16)
    convert(net)
    net(images(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


# ---------------------------------------------------------------- convolutions of other libraries


def host_convs():
    static = Conv2dStaticSamePadding(4, 6, 3, stride=2, image_size=16, bias=False)
    return {
        "Conv2dSame": Conv2dSame(4, 6, 3, stride=2, bias=False),
        "Conv2dSame dilated": Conv2dSame(4, 6, (5, 3), dilation=2),
        "static, one side": static,
        "static, both sides": Conv2dStaticSamePadding(4, 4, 5, image_size=16, groups=4),
        "static, none": Conv2dStaticSamePadding(4, 6, 1, image_size=16),
    }


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("case", host_convs())
def test_padding_of_host_convolutions_moves_in_front_of_the_layer(case, size):
    host = host_convs()[case].double()
    net = nn.Sequential(copy.deepcopy(host)).eval()
    convert(net)
    x = images(2, 4, size, size, dtype=torch.float64)
    assert type(net[0]) is Deconv2d
    torch.testing.assert_close(net(x), host(x))  # fresh statistics are zero mean and the identity


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("case", host_convs())
def test_host_convolutions_fold_exactly_without_the_package(case, size):
    net = nn.Sequential(host_convs()[case].double())
    convert(net)
    x = images(3, 4, size, size, dtype=torch.float64)
    net(x)
    plain = fold(net)
    assert_plain(plain)
    torch.testing.assert_close(plain(x), net.eval()(x), rtol=1e-9, atol=1e-9)


def test_symmetric_host_padding_folds_into_one_plain_convolution():
    net = nn.Sequential(host_convs()["static, both sides"])
    convert(net)
    plain = fold(net)
    assert type(plain[0]) is nn.Conv2d and plain[0].padding == (2, 2)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0"])
def test_smp_can_dilate_an_encoder_before_or_after_the_surgery(encoder):
    torch.manual_seed(0)
    after = smp.encoders.get_encoder(encoder).eval()
    before = copy.deepcopy(after)
    before.make_dilated(8)
    convert(before)
    convert(after)
    after.make_dilated(8)
    x = images(1, 3, 32, 32)
    for one, other in zip(before(x), after(x), strict=True):
        torch.testing.assert_close(one, other)
    assert one.shape[-2:] == (4, 4)


def test_a_padded_layer_survives_copy_pickle_and_compilation():
    net = nn.Sequential(host_convs()["Conv2dSame"]).eval()
    convert(net)
    x = images(1, 4, 9, 9)
    expected = net(x)
    torch.testing.assert_close(copy.deepcopy(net)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), expected)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class NormConv2d(Doubled):
    """Called a norm, and none."""


def special_convs():
    pruned = nn.Conv2d(4, 4, 1)
    prune.l1_unstructured(pruned, "weight", amount=1)
    spectral = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
    return {
        "has its own forward": [Doubled(4, 4, 1), NormConv2d(4, 4, 1), StdConv2d(4, 4, 1)],
        "is parametrized": [torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))],
        "its weight is computed by a hook": [pruned, spectral],
    }


@pytest.mark.parametrize("reason", special_convs())
def test_subclasses_and_computed_kernels_are_skipped_with_the_reason(reason):
    for special in special_convs()[reason]:
        net = nn.Sequential(special, nn.Conv2d(4, 4, 1))
        report = convert(net)
        assert net[0] is special and report.names("skipped") == ["0"]
        assert report.rows[0].reason.startswith(reason)


# ---------------------------------------------------------------------------------------- norms


def test_the_activation_of_a_fused_batch_norm_survives():
    net = timm.create_model("efficientnet_b0", features_only=True).eval()
    fused = sum(type(m) is BatchNormAct2d for m in net.modules())
    report = convert(net)
    kept = [m for m in net.modules() if isinstance(m, nn.Sequential) and hasattr(m, "act")]
    assert len(kept) == fused == report.counts["removed"]
    assert all(type(m.act) in (nn.SiLU, nn.Identity) for m in kept)


class Clone(nn.Module):
    def forward(self, x):
        return x.clone()


@pytest.mark.parametrize("name", ["resnetv2_18", "mobilenetv3_small_050"])
def test_no_activation_overwrites_a_shortcut_when_the_norm_before_it_is_gone(name):
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    reference = copy.deepcopy(net)
    swap_modules(
        reference,
        lambda _, m: isinstance(m, nn.BatchNorm2d),
        lambda _, m: nn.Sequential(Clone(), getattr(m, "act", nn.Identity())),
    )
    convert(net, "none")
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(net(x), reference(x))


def test_other_norms_and_layers_are_kept_and_reported():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Conv1d(4, 4, 1),
        nn.BatchNorm1d(4),
        nn.BatchNorm3d(4),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
        timm.layers.LayerNorm2d(4),
        timm.layers.GroupNormAct(4, 2),
    )
    before = list(net)
    report = convert(net)
    assert report.names("kept") == [str(i) for i in range(1, 10)]
    assert list(net)[1:] == before[1:]


def test_a_batch_norm_of_a_type_that_is_not_known_is_skipped():
    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Shifted(4))
    report = convert(net)
    assert report.names("skipped") == ["1"] and type(net[1]) is Shifted


def test_norms_stay_in_the_nearest_module_around_a_skipped_convolution():
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None)
    report = convert(net, skip=["encoder.layer1.0.conv1"])
    kept = report.names("kept")
    assert kept == ["encoder.layer1.0.bn1", "encoder.layer1.0.bn2"]
    assert net.encoder.layer1[0].conv1.bias is None  # its norm has a shift


def test_norms_around_a_separable_convolution_stay_when_its_depthwise_half_is_skipped():
    net = smp.DeepLabV3Plus("resnet18", encoder_weights=None)
    report = convert(net, skip=["decoder.block2.0.0"])
    assert report.names("kept") == ["decoder.block2.1"]


def test_a_layer_norm_network_keeps_its_norms():
    report = convert(timm.create_model("convnext_atto"))
    kept = {row.kind for row in report.rows if row.action == "kept"}
    assert report.counts["swapped"] == 40 and kept == {"LayerNorm2d", "Linear"}


def test_group_norms_of_a_decoder_are_kept():
    report = convert(smp.FPN("resnet18", encoder_weights=None))
    assert [r.kind for r in report.rows if r.action == "kept"] == ["GroupNorm"] * 7


# ------------------------------------------------------------------------------ other operators


def test_batchnorm_leaves_the_network_as_it_is():
    net = small_net()
    before = list(net)
    report = convert(net, "batchnorm")
    assert list(net) == before and set(report.counts) == {"kept"}


def test_groupnorm_and_syncbatchnorm_replace_batch_norms_only():
    for operator, kind in (("groupnorm", nn.GroupNorm), ("syncbatchnorm", nn.SyncBatchNorm)):
        net = small_net()
        convs = (net[0], net[3], net[5])
        report = convert(net, operator)
        assert report.names("replaced") == ["1", "4"] and type(net[1]) is kind
        assert (net[0], net[3], net[5]) == convs


def test_groupnorm_takes_its_number_of_groups_by_name():
    net = small_net()
    convert(net, "groupnorm", num_groups=2, options_by_name={"4": {"num_groups": 4}})
    assert (net[1].num_groups, net[4].num_groups) == (2, 4)


def test_syncbatchnorm_keeps_fused_activations():
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv3_small_050").eval()
    reference = copy.deepcopy(net)
    convert(net, "syncbatchnorm")
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(net(x), reference(x))


def test_none_removes_norms_and_leaves_plain_convolutions_with_biases():
    net = small_net()
    convs = (net[0], net[3], net[5])
    report = convert(net, "none")
    assert (net[0], net[3], net[5]) == convs and type(net[1]) is nn.Identity
    assert report.biases_added == 2 and net[0].bias is not None


# ----------------------------------------------------------------------------------- options


def test_options_go_to_all_layers_and_globs_over_them_later_ones_first():
    net = small_net()
    convert(net, n_iter=3, options_by_name={"[03]": {"n_iter": 7}, "0": {"n_iter": 15, "eps": 0.1}})
    assert [net[i].settings.n_iter for i in (0, 3, 5)] == [15, 7, 3]
    assert net[0].settings.eps == 0.1


def test_false_and_skip_leave_layers_alone():
    for arguments in ({"options_by_name": {"5": False}}, {"skip": ["5"]}):
        net = small_net()
        report = convert(net, **arguments)
        assert type(net[5]) is nn.Conv2d and report.names("skipped") == ["5"]
        assert report.rows[-1].reason == "left alone by '5'"


def test_a_norm_can_be_left_alone_by_name():
    net = small_net()
    assert convert(net, skip=["4"]).names("skipped") == ["4"]
    assert type(net[4]) is nn.BatchNorm2d


def test_a_glob_that_matches_no_layer_is_refused_with_advice():
    net = small_net()
    for arguments in ({"options_by_name": {"stem": {"n_iter": 1}}}, {"skip": ["stem"]}):
        with pytest.raises(ValueError, match=r"'stem' matches none of the layers.*'\*stem\*'"):
            convert(net, **arguments)
    assert type(net[0]) is nn.Conv2d


def test_options_for_a_norm_that_is_removed_match_nothing():
    with pytest.raises(ValueError, match="'1' matches none of the layers"):
        convert(small_net(), options_by_name={"1": {"n_iter": 3}})


def test_a_later_glob_takes_a_part_back_that_an_earlier_one_left_alone():
    net = nn.Sequential(small_net(), small_net())
    report = convert(net, options_by_name={"*": False, "1.*": {"n_iter": 7}})
    assert report.names("swapped") == ["1.0", "1.3", "1.5"]
    assert report.names("removed") == ["1.1", "1.4"]


def test_an_unknown_option_is_answered_with_the_nearest_one():
    for arguments in ({"blcok": 4}, {"options_by_name": {"0": {"blcok": 4}}}):
        with pytest.raises(ValueError, match=r"no option 'blcok'; did you mean 'block'\?"):
            convert(small_net(), **arguments)
    with pytest.raises(ValueError, match="'batchnorm' has no option 'block'; it takes no options"):
        convert(small_net(), "batchnorm", block=4)


# ------------------------------------------------------------------------------ nothing to do


def test_a_second_conversion_finds_nothing_and_says_why():
    net = small_net()
    convert(net)
    before = list(net)
    with pytest.raises(ValueError, match=r"no layer of Sequential: kept 2 Deconv2d \(is an oper"):
        convert(net)
    assert list(net) == before


@pytest.mark.parametrize("operator", ["deconv", "none", "groupnorm", "syncbatchnorm"])
def test_nothing_to_replace_is_an_error(operator):
    net = timm.create_model("resnetv2_50x1_bit", num_classes=0)
    with pytest.raises(
        ValueError, match=f"{operator!r} replaced no layer of ResNetV2: .*StdConv2d"
    ):
        convert(net, operator)


def test_a_layer_cannot_be_converted_inside_itself():
    with pytest.raises(ValueError, match=r"use the from_conv of the new layer"):
        convert(nn.Conv2d(3, 4, 1))


def test_an_empty_network_is_an_error():
    with pytest.raises(ValueError, match="it holds no convolution and no norm"):
        convert(nn.Sequential(nn.ReLU()))


# ------------------------------------------------------------------------------------- report


def test_the_report_prints_counts_types_and_reasons():
    net = nn.Sequential(small_net(), Doubled(4, 4, 1), nn.Linear(4, 4))
    text = str(convert(net))
    assert text.splitlines()[0] == "deconv on Sequential: 3 swapped, 2 removed, 1 skipped, 1 kept"
    for line in (
        "swapped 2 Conv2d: now Deconv2d",
        "skipped 1 Doubled: has its own forward (1)",
        "removed 2 BatchNorm2d: nothing in its place",
        "2 new biases of zeros",
        "1 activations no longer in place",
    ):
        assert line in text


def test_the_report_goes_to_json():
    report = convert(small_net())
    read = json.loads(json.dumps(report.to_dict()))
    assert read["counts"] == {"swapped": 3, "removed": 2}
    assert read["rows"][0] == {
        "name": "0",
        "kind": "Conv2d",
        "action": "swapped",
        "reason": "now Deconv2d",
    }


def test_layers_that_are_never_called_are_found_and_nothing_moves():
    net = smp.PSPNet("resnet18", encoder_weights=None, classes=3)
    before = copy.deepcopy(net.state_dict())
    x = images(2, 3, 64, 64)
    names = uncalled_layers(net, x)
    assert len(names) == 20 and names[0] == "encoder.layer3.0.conv1"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    report = convert(net, example_input=x)
    assert report.uncalled == tuple(name for name in names if "conv" in name or "sample.0" in name)
    assert "10 layers are never called" in str(report)
    assert uncalled_layers(net, x) == list(report.uncalled)


# --------------------------------------------------------------------------------------- fold


FOLDING_NETS = {
    "small": lambda: nn.Sequential(small_net(), nn.Flatten(), Delinear(256, 4)),
    "shared": lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3)] * 2),
    "linknet": lambda: smp.Linknet("resnet18", encoder_weights=None),
    "timm": lambda: timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5),
}


@pytest.mark.parametrize("case", FOLDING_NETS)
def test_fold_gives_plain_layers_with_the_same_outputs_in_evaluation(case):
    torch.manual_seed(0)
    net = FOLDING_NETS[case]().double()
    convert(net)
    x = images(2, 3, *((4, 4) if case == "small" else (32, 32)), dtype=torch.float64)
    net(x)
    plain = fold(net)
    assert_plain(plain)
    assert not any(m.training for m in plain.modules()) and net.training
    torch.testing.assert_close(plain(x), net.eval()(x), rtol=1e-9, atol=1e-9)


def test_fold_leaves_the_original_alone_and_keeps_keys():
    net = small_net()
    convert(net)
    before = copy.deepcopy(net.state_dict())
    plain = fold(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert set(plain.state_dict()) == {
        n for n in before if n.endswith(("weight", "bias")) and "run" not in n
    }


def test_a_single_layer_folds_too():
    assert type(fold(Deconv2d(3, 4, 3))) is nn.Conv2d
    assert type(fold(DeconvTranspose2d(3, 4, 3))) is nn.ConvTranspose2d
