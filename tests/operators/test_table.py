"""What the table of operators promises, row by row."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from segdeconv.operators import OPERATORS, list_operators, operator_layers
from segdeconv.operators.normalization import (
    group_norm,
    groups_of,
    sync_batchnorm,
    without_batchnorm,
)
from segdeconv.operators.whitened_layer import Whitening

CONVS = {
    "from_conv": lambda: nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
    "from_conv_transpose": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
}
ROWS = [(name, how) for name in OPERATORS for how in CONVS if getattr(OPERATORS[name], how)]


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def used_batchnorm(norm):
    """With weights and statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


def test_the_table_holds_the_five_operators():
    assert list(OPERATORS) == ["batchnorm", "deconv", "groupnorm", "none", "syncbatchnorm"]


def test_the_list_prints_one_line_per_operator_with_its_paper():
    lines = str(list_operators()).splitlines()
    assert len(lines) == 1 + len(OPERATORS)
    assert any(line.startswith("deconv ") and "1905.11926" in line for line in lines)


def test_an_unknown_operator_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown operator 'decnov'; did you mean 'deconv'\?"):
        OPERATORS["decnov"]


@pytest.mark.parametrize(("name", "how"), ROWS)
def test_a_layer_is_the_torch_layer_it_replaces_with_the_very_same_parameters(name, how):
    conv = CONVS[how]().eval()
    layer = getattr(OPERATORS[name], how)(conv)
    assert isinstance(layer, type(conv)) and isinstance(layer, operator_layers())
    assert layer.weight is conv.weight and layer.bias is conv.bias and not layer.training
    assert (layer.stride, layer.padding) == (conv.stride, conv.padding)


@pytest.mark.parametrize(("name", "how"), ROWS)
def test_a_layer_folds_into_exactly_the_plain_layer(name, how):
    layer = getattr(OPERATORS[name], how)(CONVS[how]().double())
    x = images(3, 4, 9, 8).double()
    layer(x)
    plain = layer.eval().fold()
    assert type(plain) in (nn.Conv2d, nn.ConvTranspose2d)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-9, atol=1e-9)


def test_deconv_takes_every_setting_of_the_layer_as_an_option():
    settings = {*Whitening.__dataclass_fields__, "preset"} - {"released_blocks"}
    assert OPERATORS["deconv"].options == settings


# ------------------------------------------------------------------- in the place of a batch norm


def test_a_removed_batch_norm_leaves_nothing():
    assert type(without_batchnorm(nn.BatchNorm2d(4))) is nn.Identity


def test_a_removed_fused_batch_norm_leaves_its_activation_under_its_own_key():
    norm = BatchNormAct2d(4, act_layer=nn.PReLU, inplace=False)
    rest = without_batchnorm(norm)
    x = images(2, 4, 3, 3)
    torch.testing.assert_close(rest(x), norm.act(x))
    assert [name for name, _ in rest.named_parameters()] == ["act.weight"]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("training", [True, False])
def test_a_synchronised_batch_norm_equals_the_batch_norm_on_one_process(kind, training):
    norm = used_batchnorm(kind(4)).train(training)
    synchronised = sync_batchnorm(norm)
    assert isinstance(synchronised, nn.SyncBatchNorm)
    x = images(2, 4, 5, 5)
    expected = norm(x)
    torch.testing.assert_close(synchronised(x), expected)
    assert synchronised.weight is norm.weight


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_group_norm_keeps_scale_shift_and_activation_of_the_batch_norm(kind):
    norm = used_batchnorm(kind(8)).double()
    new = group_norm(norm, num_groups=2)
    x = images(2, 8, 5, 5).double()
    grouped = x.reshape(2, 2, -1)
    standard = (grouped - grouped.mean(-1, keepdim=True)) / (
        grouped.var(-1, correction=0, keepdim=True) + norm.eps
    ).sqrt()
    expected = standard.view_as(x) * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(new(x), expected.relu() if kind is BatchNormAct2d else expected)
    assert new.weight is norm.weight and new.bias is norm.bias


def test_a_group_norm_stands_in_for_one_dimensional_and_unscaled_batch_norms():
    assert group_norm(nn.BatchNorm1d(8))(images(3, 8)).shape == (3, 8)
    assert group_norm(nn.BatchNorm2d(8, affine=False)).weight is None


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (48, 24), (24, 12), (16, 8), (7, 1), (1, 1)]
)
def test_groups_are_equal_at_most_32_and_never_single_channels(channels, groups):
    assert groups_of(channels) == groups


def test_a_group_norm_still_tells_pooled_maps_apart():
    new = group_norm(nn.BatchNorm2d(16))
    assert new(images(2, 16, 1, 1)).std() > 0.5


def test_a_number_of_groups_below_one_is_refused():
    with pytest.raises(ValueError, match="num_groups=0: expected 1 or more"):
        group_norm(nn.BatchNorm2d(4), num_groups=0)
