"""Grafting: a batch-norm network becomes one that whitens, and computes what it did."""

import copy
import json

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import segdeconv
from segdeconv.grafting import graft
from segdeconv.models import create_model
from segdeconv.operators import Deconv2d, DeconvTranspose2d, operator_layers
from segdeconv.surgery import convert, fold
from segdeconv.whitening import Blocks, merge, unmerge

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def images(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator, dtype=dtype)
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1)), 3, 1) + 0.5  # neighbours are alike


def trained(model, seed=0):
    """The network with norms that do something, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            for tensor, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5)):
                if tensor is not None:
                    tensor.copy_(torch.rand(len(tensor), generator=generator) + low)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(norm.bias, -0.5, 0.5, generator=generator)
    return model.eval()


def relative_difference(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def grafted(model, *, dtype=torch.float64, size=32, **options):
    """Graft a copy; check its function on other images; return it, its report and the parent."""
    parent = trained(model).to(dtype)
    child = copy.deepcopy(parent)
    report = graft(child, [images(3, 3, size, size), images(2, 3, size, size, seed=1)], **options)
    other = images(2, 3, size + 16, size, seed=2, dtype=dtype)
    with torch.no_grad():
        expected, actual = parent(other), child(other)
    assert expected.std() > 0
    assert relative_difference(actual, expected) <= TOLERANCE[dtype]
    assert report.holds and report.difference <= TOLERANCE[dtype]
    assert report.images == 5
    return child, report, parent


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.BatchNorm2d(8, affine=False),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "tf_efficientnetv2": lambda: timm.create_model(
        "tf_efficientnetv2_b0", num_classes=10, channel_multiplier=0.25, depth_multiplier=0.25
    ),
    "unet": lambda: smp.Unet(
        "resnet18",
        encoder_weights=None,
        encoder_depth=3,
        decoder_channels=(16, 8, 8),
        classes=4,
    ),
    "linknet": lambda: smp.Linknet("resnet18", encoder_weights=None, encoder_depth=3, classes=4),
    "static padding": lambda: smp.Unet(
        "efficientnet-b0", encoder_weights=None, encoder_depth=2, decoder_channels=(8, 8)
    ),
}


# ---------------------------------------------------------------------------------- the function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_in_evaluation_stays(name, dtype):
    torch.manual_seed(0)
    child, report, parent = grafted(NETWORKS[name](), dtype=dtype, size=64)
    assert max(layer.condition for layer in report.layers) < 8  # 1.5**5 = 7.6
    whitening = [m for m in child.modules() if isinstance(m, operator_layers())]
    assert len(whitening) == sum(
        isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in parent.modules()
    )
    if name != "densenet":
        assert not any(
            type(m) is nn.BatchNorm2d for n, m in child.named_modules() if n not in report.uncalled
        )


def test_grouped_dilated_and_transposed_convolutions_keep_the_function():
    child, report, _ = grafted(small_net())
    kinds = [type(m) for m in child]
    assert kinds.count(Deconv2d) == 3 and kinds.count(DeconvTranspose2d) == 1
    assert kinds.count(nn.Identity) == 3 and nn.BatchNorm2d not in kinds
    assert [(layer.name, layer.norm) for layer in report.layers] == [
        ("0", "1"),
        ("3", "4"),
        ("6", "7"),
        ("9", None),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "released"},
        {"n_iter": 15},
        {"block": 3, "grouping": "channel", "share": "none"},
        {"grouping": "channel", "share": "root"},
        {"grouping": "channel", "structure": "kronecker"},
    ],
    ids=str,
)
def test_it_holds_for_every_layout_of_the_statistics(options):
    grafted(small_net(), **options)


def test_folding_the_graft_gives_the_parent_in_plain_layers():
    child, _, parent = grafted(small_net())
    plain, x = fold(child), images(2, 3, 20, 20, seed=3, dtype=torch.float64)
    assert not any(isinstance(m, (*operator_layers(), nn.BatchNorm2d)) for m in plain.modules())
    assert relative_difference(plain(x), parent(x)) < 1e-9


# --------------------------------------------------------------------------------- the statistics


def test_the_statistics_are_those_of_all_patches_of_all_batches():
    torch.manual_seed(0)
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).double()
    batches = [images(2, 3, 16, 16), images(5, 3, 9, 12, seed=1) * 3]
    graft(net, batches, sampling_stride=1, max_rows=0, eps=0.0, n_iter=25)
    patches = torch.cat([F.unfold(x.double(), 3).transpose(1, 2).flatten(0, 1) for x in batches])
    covariance = torch.cov(patches.T, correction=0)
    torch.testing.assert_close(net[0].running_mean, patches.mean(0))
    values, vectors = torch.linalg.eigh(covariance)
    expected = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    torch.testing.assert_close(net[0].running_deconv, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", ["both", "root", "none"])
def test_batches_pool_into_what_one_large_batch_gives(share):
    torch.manual_seed(0)
    parent, whole = trained(small_net()).double(), images(6, 3, 24, 24)
    options = {"sampling_stride": 1, "max_rows": 0, "share": share, "grouping": "channel"}
    one, parts = copy.deepcopy(parent), copy.deepcopy(parent)
    graft(one, [whole], **options)
    graft(parts, [whole[:1], whole[1:4], whole[4:]], **options)
    for a, b in zip(one.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_training_on_the_calibration_batch_computes_the_same_function():
    parent, x = trained(small_net()).double(), images(4, 3, 24, 24, dtype=torch.float64)
    child = copy.deepcopy(parent)
    graft(child, [x])
    assert relative_difference(child.train()(x), parent(x)) < 1e-9


def test_a_single_patch_centres_but_does_not_whiten():
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).double()
    x = images(1, 3, 3, 3, dtype=torch.float64)
    report = graft(net, [x])
    assert report.layers[0].rows_per_column == 0
    assert torch.equal(net[0].running_deconv, torch.eye(27, dtype=torch.float64))
    torch.testing.assert_close(net[0].running_mean, x.flatten())


@pytest.mark.parametrize(
    "blocks",
    [
        Blocks(2, 9, interleaved=True),
        Blocks(2, 9, share="root"),
        Blocks(2, 9, share="none"),
        Blocks(4, 9, groups=2, share="none"),
    ],
    ids=str,
)
def test_unmerging_is_the_inverse_of_merging(blocks):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns = blocks.num * blocks.size // blocks.groups
    weight, bias = rand(6, columns // 9, 3, 3), rand(6)
    mean, root = rand(blocks.num_means, 9), rand(blocks.num_roots, 9, 9)
    again = unmerge(*merge(weight, bias, mean, root, blocks), mean, root, blocks)
    torch.testing.assert_close(again, (weight, bias), rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------------------------- what is left


class Branches(nn.Module):
    """A convolution whose output goes into a norm and past it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last, self.last_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.last_norm(self.last(self.norm(x).relu())) + x


class Heads(nn.Module):
    """One convolution on two levels, each with its norm; then one norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        one, two = self.norms[0](self.shared(x)), self.norms[1](self.shared(-x))
        return self.norm(self.left(one)) + self.norm(self.right(two))


class Tied(nn.Module):
    """Two convolutions with one kernel, each with its norm."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.last(self.norms[1](self.two(self.norms[0](self.one(x)).relu())))


def test_a_convolution_that_is_read_twice_is_grafted_and_keeps_its_norm():
    _, report, _ = grafted(Branches())
    assert report.names("swapped") == ["conv", "last"]
    assert report.names("kept") == ["norm"] and report.names("removed") == ["last_norm"]


def test_shared_convolutions_keep_their_norms_and_shared_norms_fold_into_both():
    _, report, _ = grafted(Heads())
    assert report.names("kept") == ["norms.0", "norms.1"]
    assert [layer.norm for layer in report.layers] == [None, "norm", "norm"]


def test_tied_kernels_stay_plain_with_their_norms():
    child, report, _ = grafted(Tied())
    assert report.names("skipped") == ["one", "two"] and report.names("swapped") == ["last"]
    assert child.one.weight is child.two.weight
    assert "shares its parameters" in str(report)


def test_a_skipped_convolution_keeps_its_norm_and_a_skipped_norm_stays():
    child, report, _ = grafted(small_net(), skip=["0", "7"])
    assert type(child[0]) is nn.Conv2d and type(child[1]) is nn.BatchNorm2d
    assert type(child[6]) is DeconvTranspose2d and type(child[7]) is nn.BatchNorm2d
    assert report.names("removed") == ["4"]


def test_a_norm_without_running_statistics_stays():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1)
    )
    _, report, _ = grafted(net)
    assert report.names("kept") == ["1"] and "no running statistics" in str(report)


def test_pre_activation_norms_stay_and_are_reported():
    child, report, _ = grafted(torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3))
    assert type(child.features.norm0) is nn.Identity  # behind the stem
    assert type(child.features.denseblock1.denselayer1.norm1) is nn.BatchNorm2d
    assert "does not stand directly behind" in str(report)


def test_a_head_that_only_training_calls_starts_afresh_and_keeps_its_norm():
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_net()
            self.head = nn.Sequential(nn.Conv2d(4, 2, 3, bias=False), nn.BatchNorm2d(2))

        def forward(self, x):
            x = self.body(x)
            return (x, self.head(x)) if self.training else x

    child, report, parent = grafted(WithHead())
    assert report.uncalled == ("head.0", "head.1")
    assert type(child.head[0]) is Deconv2d and type(child.head[1]) is nn.BatchNorm2d
    assert torch.equal(child.head[0].weight, parent.head[0].weight)
    assert child.head[0].running_weight == 0
    assert "2 layers are never called" in str(report)


# -------------------------------------------------------------------------------- what comes after


def test_a_training_step_works_and_moves_the_statistics():
    child, _, _ = grafted(NETWORKS["densenet"](), dtype=torch.float32, size=64)
    child.train()
    before = copy.deepcopy(child.state_dict())
    child(images(4, 3, 64, 64, seed=5)).logsumexp(1).sum().backward()
    gradients = [p.grad for p in child.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    moved = {k for k, v in child.state_dict().items() if not torch.equal(v, before[k])}
    layers = {n for n, m in child.named_modules() if isinstance(m, Deconv2d)}
    assert {f"{name}.running_deconv" for name in layers} <= moved


def test_the_weights_load_into_a_converted_network_with_the_same_norms_left_alone():
    child, report, parent = grafted(NETWORKS["densenet"]())
    again = NETWORKS["densenet"]().double()
    convert(again, skip=report.skip)
    again.load_state_dict(child.state_dict())
    x = images(2, 3, 64, 64, seed=3, dtype=torch.float64)
    assert relative_difference(again.eval()(x), parent(x)) < 1e-9


def test_a_grafted_model_is_a_weights_file_for_create_model(tmp_path):
    arguments = {"num_classes": 3, "encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    parent = create_model("unet", "tu-mobilenetv3_small_050", operator="batchnorm", **arguments)
    child, report, parent = grafted(parent, dtype=torch.float32, block=8)
    torch.save(child.state_dict(), tmp_path / "grafted.pt")
    again = create_model(
        "unet",
        "tu-mobilenetv3_small_050",
        operator_options={"block": 8, "skip": report.skip},
        weights=tmp_path / "grafted.pt",
        **arguments,
    )
    x = images(2, 3, 32, 32, seed=3)
    assert relative_difference(again.eval()(x), parent(x)) < 1e-4


def test_parameters_stay_the_same_objects_and_modes_are_kept():
    net = trained(small_net())
    weight = net[0].weight
    net.train()
    net[1].eval()
    graft(net, [images(2, 3, 16, 16)])
    assert net[0].weight is weight
    assert [m.training for m in net] == [True, False, *[True] * 8]
    assert "observer" not in vars(net[0])


def test_tuples_and_dictionaries_of_a_loader_are_batches():
    nets = [trained(small_net()) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    x = images(2, 3, 16, 16)
    batches = [[x], [(x, torch.zeros(2))], [{"mask": torch.zeros(2), "image": x}]]
    for net, batch in zip(nets, batches, strict=True):
        segdeconv.graft(net, iter(batch))
    assert all(torch.equal(net[3].weight, nets[0][3].weight) for net in nets)


def test_the_report_prints_and_is_json():
    _, report, _ = grafted(small_net())
    assert "3 BatchNorm2d: folded into the convolution before it" in str(report)
    assert "the same function" in str(report) and "5 images" in str(report)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["difference"] < 1e-9 and content["layers"][0]["norm"] == "1"


def test_a_function_that_moved_is_said_aloud():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    with pytest.warns(UserWarning, match="outputs moved by .*, more than the 1e-04"):
        report = graft(Noisy(*trained(small_net())), [images(2, 3, 16, 16)])
    assert not report.holds


# ----------------------------------------------------------------------------------------- errors


def broken():
    net = trained(small_net())
    net[0].weight.data.fill_(float("nan"))
    return net


@pytest.mark.parametrize(
    ("net", "batches", "options", "message"),
    [
        (small_net, [], {}, "no calibration batches"),
        (small_net, torch.zeros(2, 3, 8, 8), {}, "put a single batch into a list"),
        (small_net, [torch.zeros(3, 8, 8)], {}, r"got torch.float32 of shape \(3, 8, 8\)"),
        (small_net, [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], {}, "got torch.uint8"),
        (small_net, ["x.png"], {}, "got str"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), [images(1, 3, 8, 8)], {}, "no 2-D batch norm"),
        (
            lambda: nn.Sequential(Deconv2d(3, 4, 1), nn.BatchNorm2d(4)),
            [images(1, 3, 8, 8)],
            {},
            "has whitening layers already",
        ),
        (lambda: nn.Sequential(nn.BatchNorm2d(3)), [images(1, 3, 8, 8)], {}, "replaced no layer"),
        (small_net, [images(1, 3, 8, 8)], {"operator": "groupnorm"}, "that whitens, 'deconv'"),
        (small_net, [images(1, 3, 8, 8)], {"blok": 8}, "did you mean 'block'"),
        (small_net, [images(1, 3, 8, 8)], {"skip": ["nowhere"]}, "matches none"),
        (broken, [images(1, 3, 8, 8)], {}, "not finite"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(net, batches, options, message):
    model = net()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message) as caught:
        graft(model, batches, **options)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in model.modules()] == before
