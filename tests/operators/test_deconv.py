"""The whitening layers: parity with the released ones, and what ours promise beyond them."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from segdeconv.operators.deconv import ChannelDeconv, Deconv2d, DeconvTranspose2d, Delinear
from segdeconv.whitening import inverse_root

VECTORS = Path(__file__).parents[1] / "vectors"
RELEASED = {"FastDeconv": Deconv2d, "Delinear": Delinear, "ChannelDeconv": ChannelDeconv}
LAYER_FILES = sorted(path.stem for path in VECTORS.glob("*.npz") if path.stem != "isqrt")

CONVS = {  # one line per thing that has broken somewhere
    "1x1": dict(kernel_size=1),
    "1x1 padded": dict(kernel_size=1, padding=1),
    "3x3 same": dict(kernel_size=3, padding="same"),
    "even same": dict(kernel_size=(2, 4), padding="same"),
    "valid": dict(kernel_size=3, padding="valid"),
    "strided": dict(kernel_size=3, stride=2, padding=1),
    "dilated": dict(kernel_size=3, padding=2, dilation=2),
    "tuples": dict(kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1)),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "replicate": dict(kernel_size=3, padding=(2, 1), padding_mode="replicate"),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "circular same": dict(kernel_size=3, padding="same", padding_mode="circular"),
    "grouped": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=3, padding=1, groups=4),
    "no bias": dict(kernel_size=3, bias=False),
}

TRANSPOSED = {
    "2x2 stride 2": dict(kernel_size=2, stride=2),
    "4x4 stride 2": dict(kernel_size=4, stride=2, padding=1),
    "3x3 stride 2, output padding": dict(kernel_size=3, stride=2, padding=1, output_padding=1),
    "stride 3": dict(kernel_size=(5, 3), stride=3, padding=(2, 1)),
    "stride 1": dict(kernel_size=3, padding=1),
    "dilated": dict(kernel_size=3, stride=2, dilation=2, padding=3),
    "grouped": dict(kernel_size=4, stride=2, padding=1, groups=2),
    "no bias": dict(kernel_size=2, stride=2, bias=False),
}


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n=3, c=4, h=9, w=11, seed=1):
    """Correlated, non-negative, different channel means: what a layer meets in a network."""
    smooth = F.avg_pool2d(random(n, c, h + 2, w + 2, seed=seed), 3, stride=1)
    return (smooth + torch.arange(c).view(1, c, 1, 1) / c).relu()


def relative(actual, expected):
    expected = torch.as_tensor(expected)
    largest = max(float(expected.abs().max()), 1e-300)
    return float((actual.detach().double() - expected).abs().max()) / largest


def make(kind=Deconv2d, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return kind(*args, **kwargs).double()


# --- parity with the released layers ---


def released_layer(data, dtype):
    settings = json.loads(str(data["settings"]))
    layer = RELEASED[settings["layer"]](**settings["args"], preset="released").to(dtype)
    if "weight" in data:
        layer.weight.data.copy_(torch.tensor(data["weight"]))
        layer.bias.data.copy_(torch.tensor(data["bias"]))
    return layer, settings["steps"], settings["args"].get("n_iter", 5)


def tolerance(dtype, n_iter):
    double, single = next(
        row[1:]
        for row in [(7, 1e-12, 1e-5), (10, 1e-10, 1e-3), (15, 1e-9, 1e-2)]
        if n_iter <= row[0]
    )
    return double if dtype == torch.float64 else single


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYER_FILES)
def test_released_preset_reproduces_outputs_gradients_and_statistics(name, dtype):
    data = np.load(VECTORS / f"{name}.npz")
    layer, steps, n_iter = released_layer(data, dtype)
    bound = tolerance(dtype, n_iter)
    for step in range(steps):
        x = torch.tensor(data[f"step{step}_input"]).to(dtype).requires_grad_()
        layer.zero_grad()
        y = layer(x)
        (y * torch.tensor(data["probe"]).to(dtype)).sum().backward()
        found = {"output": y, "grad_input": x.grad, **dict(layer.named_buffers())}
        found |= {f"grad_{key}": value.grad for key, value in layer.named_parameters()}
        found.pop("running_weight", None)
        for key, value in found.items():
            assert relative(value, data[f"step{step}_{key}"]) < bound, (step, key)
    layer.eval()
    found = layer(torch.tensor(data["eval_input"]).to(dtype))
    assert relative(found, data["eval_output"]) < bound


def test_released_checkpoints_load_strictly():
    layer = Deconv2d(16, 8, 3, preset="released", freeze=True)
    names = ("weight", "bias", "running_mean", "running_deconv")
    checkpoint_ = {name: torch.randn_like(layer.state_dict()[name]) for name in names}
    layer.load_state_dict(checkpoint_)
    assert layer.running_weight == 1
    assert torch.equal(layer.running_deconv, checkpoint_["running_deconv"])


# --- the function, against an explicit whitening in float64 ---


def explicit(layer, x):
    """Pad, cut out every patch, pool the sampled ones, whiten, multiply: no merging."""
    if layer.padding_mode != "zeros":
        pads = layer._reversed_padding_repeated_twice
        x = F.pad(x, pads, mode=layer.padding_mode)
    elif layer.padding == "same":
        x = F.pad(x, layer._reversed_padding_repeated_twice)
    elif layer.padding != "valid":
        x = F.pad(x, (layer.padding[1],) * 2 + (layer.padding[0],) * 2)
    (kh, kw), (dh, dw), (sh, sw) = layer.kernel_size, layer.dilation, layer.stride
    out_h = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    out_w = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1

    def patch(p, q):
        window = x[:, :, p : p + dh * (kh - 1) + 1 : dh, q : q + dw * (kw - 1) + 1 : dw]
        return window.flatten(2)  # N, C, taps

    every = torch.stack(
        [patch(p * sh, q * sw) for p in range(out_h) for q in range(out_w)]
    )  # S, N, C, taps
    step = layer.settings.sampling_stride
    picked = torch.stack(
        [patch(p * sh, q * sw) for p in range(0, out_h, step) for q in range(0, out_w, step)]
    )
    groups, per_group = layer.groups, layer.in_channels // layer.groups
    outputs = []
    for g in range(groups):
        channels = slice(g * per_group, (g + 1) * per_group)
        u, v = picked[:, :, channels].flatten(2).flatten(0, 1), every[:, :, channels].flatten(2)
        mean = u.mean(0)
        cov = (u - mean).T @ (u - mean) / len(u) + layer.settings.eps * torch.eye(u.shape[1])
        y = z = None
        y, z = cov / cov.norm(), torch.eye(len(cov), dtype=cov.dtype)
        for _ in range(layer.settings.n_iter):
            t = 0.5 * (3 * torch.eye(len(cov)) - z @ y)
            y, z = y @ t, t @ z
        rows = slice(g * layer.out_channels // groups, (g + 1) * layer.out_channels // groups)
        whitened = (v - mean) @ (z / cov.norm().sqrt())
        outputs.append(whitened @ layer.weight[rows].flatten(1).T)
    out = torch.cat(outputs, -1)  # S, N, O
    if layer.bias is not None:
        out = out + layer.bias
    return out.permute(1, 2, 0).unflatten(2, (out_h, out_w))


@pytest.mark.parametrize("arguments", CONVS.values(), ids=CONVS)
def test_output_equals_an_explicit_whitening_of_every_patch(arguments):
    layer = make(Deconv2d, 4, 8, **arguments, min_rows=0)
    x = images()
    torch.testing.assert_close(layer(x), explicit(layer, x), rtol=1e-10, atol=1e-10)


def zero_stretched(layer, x):
    """The ordinary convolution a transposed one is: its input and its layer."""
    (sh, sw), (ph, pw), (oh, ow) = layer.stride, layer.padding, layer.output_padding
    (kh, kw), (dh, dw) = layer.kernel_size, layer.dilation
    n, c, h, w = x.shape
    wide = torch.zeros(n, c, (h - 1) * sh + 1, (w - 1) * sw + 1, dtype=x.dtype)
    for i in range(h):
        for j in range(w):
            wide[:, :, i * sh, j * sw] = x[:, :, i, j]
    top, left = dh * (kh - 1) - ph, dw * (kw - 1) - pw
    return F.pad(wide, (left, left + ow, top, top + oh))


@pytest.mark.parametrize("arguments", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_output_equals_an_explicit_whitening_of_the_stretched_map(arguments):
    layer = make(DeconvTranspose2d, 4, 6, **arguments, sampling_stride=1, min_rows=0)
    ordinary = make(
        Deconv2d,
        4,
        6,
        layer.kernel_size,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        sampling_stride=1,
        min_rows=0,
    )
    g = layer.groups
    turned = layer.weight.detach().view(g, 4 // g, 6 // g, *layer.kernel_size)
    ordinary.weight.data = turned.transpose(1, 2).reshape(ordinary.weight.shape).flip(-1, -2)
    if layer.bias is not None:
        ordinary.bias.data = layer.bias.data
    # Sampling every position: a step of 1 has no common factor with any stride.
    x = images(2, 4, 5, 4)
    expected = explicit(ordinary, zero_stretched(layer, x))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_transposed_sampling_visits_every_phase():
    layer = DeconvTranspose2d(2, 2, 3, stride=3, sampling_stride=3)
    step = layer._sampling([0, 0], 3).grid.step[0]
    assert {position % 3 for position in range(0, 60, step)} == {0, 1, 2}


def test_a_transposed_layer_takes_an_output_size_as_torch_does():
    layer = make(DeconvTranspose2d, 4, 6, 3, stride=2, padding=1).eval()
    plain = layer.fold()
    x = images(2, 4, 5, 4)
    torch.testing.assert_close(layer(x, [10, 8]), plain(x, [10, 8]), rtol=1e-10, atol=1e-10)


def test_linear_output_equals_an_explicit_whitening_of_contiguous_blocks():
    layer = make(Delinear, 12, 5, block=4, min_rows=0)
    x = random(40, 12) @ random(12, 12, seed=3) + 1
    pooled = x.view(-1, 4)
    mean = pooled.mean(0)
    cov = torch.cov(pooled.T, correction=0) + 1e-5 * torch.eye(4)
    whitened = (pooled - mean) @ inverse_root(cov, 5)
    expected = whitened.view(40, 12) @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    batch = make(Delinear, 12, 5, block=4, min_rows=0)(x.view(8, 5, 12))
    torch.testing.assert_close(batch, expected.view(8, 5, 5), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"grouping": "channel"}], ids=["interleaved", "channel"])
@pytest.mark.parametrize("share", ["both", "root", "none"])
def test_patches_of_a_block_come_out_with_unit_covariance(options, share):
    every_row = {"sampling_stride": 1, "max_rows": 0}
    layer = make(Deconv2d, 4, 36, 3, block=2, n_iter=25, share=share, **every_row, **options)
    layer.weight.data = torch.eye(36, dtype=torch.float64).view(36, 4, 3, 3)
    layer.bias.data.zero_()
    y = layer(random(8, 4, 16, 16)).transpose(0, 1).flatten(1)
    cov = torch.cov(y, correction=0)
    columns = torch.arange(36)
    block = columns // 18 if options else columns % 2
    blocks = [cov[block == g][:, block == g] for g in (0, 1)]
    if share == "none":
        for own in blocks:
            torch.testing.assert_close(own, torch.eye(18).double(), atol=1e-3, rtol=0)
    else:  # one root for both: it whitens their average
        average = (blocks[0] + blocks[1]) / 2
        torch.testing.assert_close(average, torch.eye(18).double(), atol=2e-2, rtol=0)


def test_channel_blocks_remove_the_correlation_between_taps_that_interleaved_ones_leave():
    x = images(8, 32, 16, 16)

    def correlation_of_neighbouring_taps(grouping):
        layer = make(Deconv2d, 32, 18, 3, block=2, n_iter=15, grouping=grouping, share="none")
        taps = torch.zeros(18, 32, 9, dtype=torch.float64)
        taps[range(18), [0] * 9 + [1] * 9, list(range(9)) * 2] = 1
        layer.weight.data = taps.view(18, 32, 3, 3)
        whitened = layer(x).transpose(0, 1).flatten(1)
        return torch.corrcoef(whitened)[0, 1].abs()

    assert correlation_of_neighbouring_taps("channel") < 0.1
    assert correlation_of_neighbouring_taps("interleaved") > 0.3


# --- what ours fixes ---


def evaluation_error(**options):
    layer = make(Deconv2d, 16, 8, 3, padding=1, **options)
    x = 3 * random(8, 16, 12, 12) + 5
    trained = layer(x)
    return relative(layer.eval()(x), trained.detach())


def test_evaluation_agrees_with_training_after_the_first_step():
    assert evaluation_error() < 1e-9
    assert evaluation_error(preset="released") > 1


def test_running_statistics_are_the_bias_corrected_average():
    layer = make(Deconv2d, 4, 2, 1, bias=False)
    batches = [images(seed=seed) for seed in range(5)]
    average, weight = 0, 0
    for x in batches:
        alone = make(Deconv2d, 4, 2, 1, bias=False)
        alone(x)
        average = 0.9 * average + 0.1 * alone.running_deconv
        weight = 0.9 * weight + 0.1
        layer(x)
    torch.testing.assert_close(layer.running_deconv, average / weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.running_weight.item(), weight)


def test_without_a_bias_the_shift_by_the_mean_still_applies():
    layer = make(Deconv2d, 4, 6, 3, bias=False)
    output = layer(images() + 7)
    assert output.mean().abs() < 0.5 * output.std()
    assert layer.fold().bias is not None


@pytest.mark.parametrize(
    "arguments, size",
    [
        (dict(kernel_size=1), (1, 1)),
        (dict(kernel_size=3, padding=1), (1, 1)),
        (dict(kernel_size=3, padding=1), (2, 3)),
        (dict(kernel_size=3, padding=1, groups=8), (1, 1)),
        (dict(kernel_size=3, padding=1, groups=8), (2, 2)),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("share", ["both", "none"])
def test_batches_with_too_few_samples_give_bounded_finite_results(arguments, size, batch, share):
    torch.manual_seed(0)
    layer = Deconv2d(32, 8, **arguments, share=share)
    for _ in range(3):
        x = torch.rand(batch, 32, *size, requires_grad=True)
        y = layer(x)
        y.square().sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
        assert layer.weight.grad.isfinite().all()
    y = layer.eval()(torch.rand(4, 32, *size))
    assert y.isfinite().all() and y.abs().max() < 100


def test_a_degenerate_depthwise_batch_does_not_blow_up_evaluation_as_the_released_rule_does():
    def gain(**options):
        torch.manual_seed(0)
        layer = Deconv2d(8, 8, 3, padding=1, groups=8, **options)
        for _ in range(60):
            layer(torch.rand(1, 8, 1, 1))
        return layer.eval()(torch.rand(4, 8, 1, 1)).abs().max()

    assert gain() < 10 < gain(preset="released")


def test_sampling_gets_denser_before_the_covariance_is_shrunk():
    layer = Deconv2d(16, 4, 3, padding=1)
    large, small = torch.rand(4, 16, 96, 96), torch.rand(4, 16, 16, 16)
    released = Deconv2d(16, 4, 3, padding=1, preset="released")

    def step(layer, x):
        return layer._choose_sampling(x, layer._sampling)[0].step[0]

    assert (step(layer, large), step(layer, small), step(released, small)) == (3, 1, 3)


INPUTS = {
    "zero": lambda: torch.zeros(2, 8, 12, 12),
    "constant": lambda: torch.full((2, 8, 12, 12), 3.0),
    "dead channel": lambda: torch.rand(2, 8, 12, 12) * (torch.arange(8) != 3).view(8, 1, 1),
    "one image": lambda: torch.rand(1, 8, 12, 12),
    "tiny": lambda: torch.rand(2, 8, 12, 12) * 1e-6,
    "huge": lambda: torch.rand(2, 8, 12, 12) * 1e4,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n_iter", [5, 15])
@pytest.mark.parametrize("name", INPUTS)
def test_no_nan_in_any_precision(name, n_iter, dtype):
    torch.manual_seed(0)
    layer = Deconv2d(8, 8, 3, padding=1, n_iter=n_iter)
    for _ in range(3):
        x = INPUTS[name]().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            y = layer(x)
        y.float().mean().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
        assert layer.weight.grad.isfinite().all() and layer.bias.grad.isfinite().all()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        assert layer.eval()(INPUTS[name]()).isfinite().all()
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


@pytest.mark.parametrize("kind", [Deconv2d, DeconvTranspose2d])
def test_a_batch_with_nan_leaves_the_running_statistics_alone(kind):
    layer = make(kind, 4, 4, 3)
    layer(images())
    before = copy.deepcopy(layer.state_dict())
    bad = images()
    bad[0, 0, 0, 0] = float("nan")
    layer(bad)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_empty_batch_passes_through():
    layer = make(Deconv2d, 4, 6, 3)
    assert layer(torch.zeros(0, 4, 9, 11, dtype=torch.float64)).shape == (0, 6, 7, 9)
    assert layer.running_weight == 0


def test_an_untrained_layer_evaluates_as_the_plain_convolution():
    layer = make(Deconv2d, 4, 6, 3).eval()
    expected = F.conv2d(images(), layer.weight, layer.bias)
    torch.testing.assert_close(layer(images()), expected)


def test_an_image_without_batch_dimension_is_a_batch_of_one():
    layer = make(Deconv2d, 4, 6, 3)
    other = copy.deepcopy(layer)
    torch.testing.assert_close(layer(images(1)[0]), other(images(1))[0])


# --- gradients ---


@pytest.mark.parametrize("arguments", CONVS.values(), ids=CONVS)
def test_gradients_agree_with_finite_differences(arguments):
    layer = make(Deconv2d, 4, 4, **arguments, block=2)

    def run(x, weight):  # a copy, because the running statistics move in each call
        return torch.func.functional_call(copy.deepcopy(layer), {"weight": weight}, x)

    x = images(2, 4, 5, 6).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, weight), fast_mode=True)


@pytest.mark.parametrize("options", [{"grouping": "channel"}, {"share": "root"}, {"n_iter": 12}])
def test_gradients_of_options_agree_with_finite_differences(options):
    layer = make(Deconv2d, 4, 3, 2, block=2, **options)
    assert torch.autograd.gradcheck(
        lambda x: copy.deepcopy(layer)(x), images(2, 4, 5, 5).requires_grad_(), fast_mode=True
    )


def test_gradients_of_a_transposed_layer_agree_with_finite_differences():
    layer = make(DeconvTranspose2d, 4, 4, 4, stride=2, padding=1, block=2)
    assert torch.autograd.gradcheck(
        lambda x: copy.deepcopy(layer)(x), images(2, 4, 4, 3).requires_grad_(), fast_mode=True
    )


def test_a_frozen_step_sends_only_the_convolution_gradient():
    layer = make(Deconv2d, 4, 4, 3, freeze=True, freeze_iter=1)
    for _ in range(2):
        layer(images())
    x = images(seed=5).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    frozen = x.grad.clone()
    x.grad = None
    layer.eval()(x).square().sum().backward()
    torch.testing.assert_close(frozen, x.grad, rtol=1e-10, atol=1e-10)


def test_an_evaluation_forward_survives_a_training_step_before_its_backward():
    layer = make(Deconv2d, 4, 4, 3)
    layer(images())
    waiting = layer.eval()(images())
    layer.train()(images(seed=2))
    waiting.sum().backward()
    assert layer.weight.grad.isfinite().all()


# --- state ---


def trained(**options):
    layer = make(Deconv2d, 4, 4, 3, **options)
    for seed in range(3):
        layer(images(seed=seed))
    return layer


def test_copies_pickles_and_state_dicts_continue_alike():
    layer = trained(freeze=True, freeze_iter=1)
    loaded = make(Deconv2d, 4, 4, 3, freeze=True, freeze_iter=1, seed=9)
    loaded.load_state_dict(layer.state_dict())
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded]
    for seed in range(8, 18):  # across the end of the frozen phase
        expected = layer(images(seed=seed))
        assert all(torch.equal(other(images(seed=seed)), expected) for other in others)
    assert layer.counter == 3 and all(other.counter == 3 for other in others)


def test_evaluation_changes_no_state_and_repeats_bit_for_bit():
    layer = trained().eval()
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(layer(images()), layer(images()))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_half_precision_layer_keeps_its_statistics_in_float32():
    layer = Deconv2d(4, 4, 3).bfloat16()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_deconv.dtype == torch.float32
    assert layer(images().bfloat16()).dtype == torch.bfloat16
    assert layer.eval()(images().bfloat16()).dtype == torch.bfloat16


def test_autocast_neither_moves_the_statistics_nor_the_dtype_of_gradients():
    plain, cast = Deconv2d(4, 4, 3), Deconv2d(4, 4, 3)
    x = images().float()
    plain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = cast(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(cast.running_deconv, plain.running_deconv, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("options", [{}, {"freeze": True, "freeze_iter": 1}])
def test_activation_checkpointing_counts_the_statistics_once(use_reentrant, options):
    plain, other = trained(**options), trained(**options)
    for seed in range(4):
        x1, x2 = (images(seed=seed).requires_grad_() for _ in range(2))
        plain(x1).square().sum().backward()
        checkpoint(other, x2, use_reentrant=use_reentrant).square().sum().backward()
        torch.testing.assert_close(x1.grad, x2.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


def test_gradient_accumulation_adds_the_gradients_of_the_micro_batches():
    layer, other = make(Deconv2d, 4, 4, 3), make(Deconv2d, 4, 4, 3)
    expected = 0
    for seed in range(3):
        layer(images(seed=seed)).square().sum().backward()
        other.zero_grad()
        other(images(seed=seed)).square().sum().backward()
        expected = expected + other.weight.grad
    torch.testing.assert_close(layer.weight.grad, expected)
    torch.testing.assert_close(layer.running_deconv, other.running_deconv)


def test_channels_last_input_gives_the_same_numbers():
    layer, other = make(Deconv2d, 8, 4, 3), make(Deconv2d, 8, 4, 3)
    x = images(2, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), other.to(memory_format=torch.channels_last)(last))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=1),
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding=1, groups=4),
        dict(kernel_size=3, padding=1, n_iter=15, freeze=True, freeze_iter=1),
    ],
)
def test_every_compiled_variant_equals_eager(arguments):
    compiled_equals_eager(arguments)


def test_a_compiled_layer_equals_eager_in_training_and_evaluation():
    compiled_equals_eager(dict(kernel_size=3, padding=1, block=4))


def compiled_equals_eager(arguments):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = Deconv2d(16, 8, **arguments)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True)
    for _ in range(3):
        x1 = torch.randn(4, 16, 12, 12, requires_grad=True)
        x2 = x1.detach().clone().requires_grad_()
        layer(x1).square().sum().backward()
        compiled(x2).square().sum().backward()
        torch.testing.assert_close(x2.grad, x1.grad, rtol=1e-3, atol=1e-3)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-4)
    layer.eval()
    compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x1), layer(x1), rtol=1e-4, atol=1e-4)


# --- the merged kernel in evaluation ---


def merged_kernel(layer):
    with torch.no_grad():
        layer(images())
    return layer._merged


def test_the_merged_kernel_is_computed_once_and_again_when_anything_changes():
    layer = trained().eval()
    first = merged_kernel(layer)
    assert merged_kernel(layer) is first
    for change in (
        lambda: (layer.weight.data.mul_(2), layer.eval()),
        lambda: layer.load_state_dict(trained().state_dict()),
        lambda: layer.running_mean.add_(1),
        lambda: (layer.train()(images()), layer.eval()),
        lambda: layer.double(),
    ):
        change()
        again = merged_kernel(layer)
        assert again is not first
        fresh = copy.deepcopy(layer)
        with torch.no_grad():
            assert torch.equal(fresh(images()), layer(images()))
        first = again


def test_an_optimiser_step_in_evaluation_mode_refreshes_the_merged_kernel():
    layer = trained().eval()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = merged_kernel(layer)[1].clone()
    layer(images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(merged_kernel(layer)[1], before)


def test_a_kernel_merged_in_inference_mode_serves_a_later_gradient():
    layer = trained().eval().requires_grad_(False)
    with torch.inference_mode():
        layer(images())
    x = images().requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind, arguments", [*((Deconv2d, a) for a in CONVS.values())])
def test_folded_convolution_is_plain_and_equals_evaluation(kind, arguments):
    layer = make(kind, 4, 8, **arguments)
    layer(images())
    plain = layer.eval().fold()
    assert type(plain) is nn.Conv2d and not plain.training
    torch.testing.assert_close(plain(images()), layer(images()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arguments", TRANSPOSED.values(), ids=TRANSPOSED)
def test_folded_transposed_convolution_is_plain_and_equals_evaluation(arguments):
    layer = make(DeconvTranspose2d, 4, 6, **arguments)
    layer(images())
    plain = layer.eval().fold()
    assert type(plain) is nn.ConvTranspose2d
    torch.testing.assert_close(plain(images()), layer(images()), rtol=1e-9, atol=1e-9)


def test_folded_linear_is_plain_and_equals_evaluation():
    layer = make(Delinear, 12, 5, bias=False)
    layer(random(40, 12))
    plain = layer.eval().fold()
    assert type(plain) is nn.Linear
    x = random(3, 12, seed=5)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-9, atol=1e-9)


# --- taking over a layer, options ---


@pytest.mark.parametrize("arguments", CONVS.values(), ids=CONVS)
def test_it_takes_over_the_very_same_parameters_and_leaves_the_random_state_alone(arguments):
    conv = nn.Conv2d(4, 8, **arguments).double().eval()
    state = torch.get_rng_state()
    layer = Deconv2d.from_conv(conv, block=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(layer, nn.Conv2d) and not layer.training
    assert layer.weight is conv.weight and layer.bias is conv.bias
    torch.testing.assert_close(layer(images()), conv(images()))


def test_transposed_and_linear_layers_take_over_too():
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1).double().eval()
    layer = DeconvTranspose2d.from_conv(conv)
    assert layer.weight is conv.weight
    torch.testing.assert_close(layer(images()), conv(images()))
    linear = nn.Linear(12, 3).double().eval()
    other = Delinear.from_linear(linear)
    assert other.weight is linear.weight
    torch.testing.assert_close(other(random(2, 12)), linear(random(2, 12)))


def test_dilation_set_afterwards_is_obeyed():
    """Model libraries dilate encoders by editing stride, padding and dilation in place."""
    layer = make(Deconv2d, 4, 8, 3, stride=2, padding=1, min_rows=0)
    layer.stride, layer.padding, layer.dilation = (1, 1), (2, 2), (2, 2)
    x = images()
    torch.testing.assert_close(layer(x), explicit(layer, x), rtol=1e-10, atol=1e-10)


def test_a_module_can_pad_the_input_before_patches_are_cut():
    layer, padded = make(Deconv2d, 4, 8, 3), make(Deconv2d, 4, 8, 3, padding=1)
    layer.input_padding = nn.ZeroPad2d(1)
    torch.testing.assert_close(layer(images()), padded(images()))
    torch.testing.assert_close(layer.running_deconv, padded.running_deconv)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"blok": 8}, "did you mean 'block'"),
        ({"n_iter": 0}, "n_iter=0: expected a whole number, 1 or more"),
        ({"block": "16"}, "block='16': expected a whole number"),
        ({"block": 1.5}, "block=1.5: expected a whole number"),
        ({"eps": float("nan")}, "eps=nan: expected a number"),
        ({"freeze": "x"}, "freeze='x': expected true or false"),
        ({"momentum": 0.0}, "momentum"),
        ({"eps": -1.0}, "eps"),
        ({"grouping": "rows"}, "grouping='rows'"),
        ({"preset": "paper"}, "unknown preset 'paper'"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        Deconv2d(4, 4, 3, **options)


def test_the_printed_layer_says_what_is_whitened():
    assert "blocks=4x144, n_iter=5" in repr(Deconv2d(64, 8, 3, block=16))


# --- ChannelDeconv ---


def test_channel_layer_whitens_its_channels_and_evaluates_as_it_trains():
    layer = make(ChannelDeconv, block=4, n_iter=15, eps=1e-6, sampling_stride=1)
    x = images(8, 4, 16, 16) * 3
    y = layer(x)
    whitened = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(whitened), torch.eye(4).double(), atol=0.02, rtol=0)
    assert whitened.mean(1).abs().max() < 1e-9
    torch.testing.assert_close(layer.eval()(x), y)


def test_channel_layer_takes_vectors_any_memory_format_and_evaluates_before_training():
    layer = make(ChannelDeconv, block=4)
    assert torch.equal(layer.eval()(random(5, 8)), random(5, 8))
    x = images(2, 6)  # 4 whitened channels, 2 scaled
    last = x.contiguous(memory_format=torch.channels_last)
    first = copy.deepcopy(layer).train()(x)
    torch.testing.assert_close(layer.train()(last), first)


def test_channel_layer_refuses_other_shapes():
    with pytest.raises(ValueError, match="choose a smaller block"):
        ChannelDeconv(block=8)(torch.zeros(2, 4, 5, 5))
    with pytest.raises(ValueError, match="expected"):
        ChannelDeconv(block=2)(torch.zeros(2, 4, 5))
