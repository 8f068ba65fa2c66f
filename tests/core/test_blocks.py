"""The shortcuts are the chains that define them, and an untrained block is its shortcut."""

from math import gcd

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcae_lib.blocks import (
    DownBlock,
    MiddleStage,
    NormActConv,
    NormActUp,
    ResidualBlock,
    UpBlock,
    direct_down,
    direct_up,
    pool_down,
    pool_up,
)

patient = settings(max_examples=25)


def averaged(x, out):
    return x.unflatten(1, (out, -1)).mean(2)


def pool_up_chain(x, out):
    x = F.interpolate(F.pixel_shuffle(x, 2), scale_factor=2, mode="nearest")
    return x.repeat_interleave(out // x.shape[1], 1)


CHAINS = {  # the definitions, from torch alone
    pool_down: lambda x, out: F.avg_pool2d(averaged(F.pixel_unshuffle(x, 2), out), 2),
    pool_up: pool_up_chain,
    direct_down: lambda x, out: averaged(F.pixel_unshuffle(x, 4), out),
    direct_up: lambda x, out: F.pixel_shuffle(x.repeat_interleave(16 * out // x.shape[1], 1), 4),
}
WIDTHS = {  # in and out; pool_down has a way of its own where they double
    pool_down: [(4, 8), (3, 6), (4, 4), (8, 4), (4, 16), (12, 16), (3, 2)],
    pool_up: [(8, 4), (12, 6), (4, 4), (16, 4), (4, 3), (16, 12)],
    direct_down: [(4, 8), (3, 6), (4, 4), (8, 4), (2, 32), (3, 8)],
    direct_up: [(8, 4), (6, 3), (4, 4), (4, 8), (32, 2), (8, 3)],
}
SHORTCUTS = [(shortcut, *widths) for shortcut, pairs in WIDTHS.items() for widths in pairs]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("shortcut, i, o", SHORTCUTS)
@patient
@given(h=st.integers(1, 5), w=st.integers(1, 5), layout=st.sampled_from(LAYOUTS), batch=st.integers(1, 3))
def test_a_shortcut_and_its_gradient_are_those_of_its_chain(shortcut, i, o, h, w, layout, batch):
    f = 4 if shortcut in (pool_down, direct_down) else 1
    x = torch.randn(batch, i, f * h, f * w, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    y, expected = shortcut(x, o), CHAINS[shortcut](x, o)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)  # means are summed in another order
    slope = torch.randn_like(expected)
    gradient, wanted = (torch.autograd.grad(v, x, slope)[0] for v in (y, expected))
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [DownBlock(4, 8, "pool"), DownBlock(4, 8, "direct"), DownBlock(4, 4, "pool")])
@pytest.mark.parametrize("H, W", [(5, 5), (4, 5), (6, 6), (8, 7)])
def test_sides_must_be_multiples_of_four(block, H, W):
    with pytest.raises(ValueError, match=f"multiples of 4, got {H}×{W}; pad or crop"):
        block(torch.zeros(1, 4, H, W))


# ---- an untrained block


BLOCKS = [(DownBlock, pool_down, "pool", 16, 32), (DownBlock, direct_down, "direct", 16, 32)]
BLOCKS += [(DownBlock, pool_down, "pool", 16, 16), (DownBlock, direct_down, "direct", 12, 16)]
BLOCKS += [(UpBlock, pool_up, "pool", 32, 16), (UpBlock, direct_up, "direct", 16, 12)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("block, shortcut, kind, i, o", BLOCKS)
def test_an_untrained_block_is_its_shortcut_bit_for_bit(block, shortcut, kind, i, o, dropout, training):
    x = torch.randn(2, i, 8, 12)
    assert torch.equal(block(i, o, kind, dropout=dropout).train(training)(x), shortcut(x, o))
    started = block(i, o, kind, zero_init=False)
    torch.testing.assert_close(started(x), started.branch(x) + shortcut(x, o))
    assert started.branch(x).abs().mean() > 0.01


@pytest.mark.parametrize("block", [DownBlock(16, 32, "none"), UpBlock(32, 16, "none")])
def test_without_a_shortcut_a_block_is_its_branch(block):
    x = torch.randn(2, block.branch[0][2].in_channels, 8, 8)
    assert torch.equal(block(x), block.branch(x))
    assert block(x).abs().mean() > 0.01  # it does not start at zero


@pytest.mark.parametrize("i, o", [(32, 16), (16, 32), (16, 16)])
def test_untrained_residual_blocks_and_stages_are_their_shortcuts(i, o):
    x, block, stage = torch.randn(2, i, 4, 6), ResidualBlock(i, o, dropout=0.5), MiddleStage(i, o)
    if i == o:
        assert torch.equal(block(x), x)
    else:
        assert block.shortcut.kernel_size == (1, 1)
        assert torch.equal(block(x), F.conv2d(x, block.shortcut.weight, block.shortcut.bias))
    first, second = (block.shortcut for block in stage.branch)
    assert torch.equal(stage(x), stage.shortcut(x) + second(first(x)))
    assert stage.branch[0].branch[0][2].out_channels == max(i, o)  # the inner width


# ---- units and shapes


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_is_norm_then_silu_then_convolution(stride):
    x, unit = torch.randn(2, 12, 8, 10), NormActConv(12, 5, stride, groups=8).eval()
    norm, conv = unit[0], unit[2]
    with torch.no_grad():
        norm.weight.uniform_(), norm.bias.uniform_()
    expected = F.conv2d(F.silu(F.group_norm(x, 4, norm.weight, norm.bias)), conv.weight, conv.bias, stride, padding=1)
    assert conv.kernel_size == (3, 3)
    assert torch.equal(unit(x), expected)


@pytest.mark.parametrize("unit", [NormActConv(4, 4, dropout=0.5), NormActUp(4, 4, dropout=0.5)])
def test_dropout_comes_last_and_in_training_only(unit):
    x = torch.randn(1, 4, 16, 16)
    whole, dropped = unit.eval()(x), unit.train()(x)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])  # what is kept is scaled by 1 / (1 - p)


@pytest.mark.parametrize("groups, i", [(8, 16), (8, 12), (8, 3), (5, 20), (32, 16), (1, 7)])
@pytest.mark.parametrize("module", [NormActConv, NormActUp, DownBlock, UpBlock, ResidualBlock, MiddleStage])
def test_norms_have_gcd_of_groups_and_width_groups(module, groups, i):
    options = dict(shortcut="none") if module in (DownBlock, UpBlock) else {}
    norms = [m for m in module(i, 24, groups=groups, **options).modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(norm.num_groups == gcd(groups, norm.num_channels) for norm in norms)
