"""The fused shortcuts are the chains that define them, and an untrained block is its shortcut."""

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

patient = settings(deadline=None, max_examples=25)          # a busy core is no failure


# ---- the definitions, from torch alone


def mean_of_runs(x, out):
    return x.unflatten(1, (out, -1)).mean(2)


def pool_down_chain(x, out):
    return F.avg_pool2d(mean_of_runs(F.pixel_unshuffle(x, 2), out), 2)


def pool_up_chain(x, out):
    x = F.interpolate(F.pixel_shuffle(x, 2), scale_factor=2, mode="nearest")
    return x.repeat_interleave(out // x.shape[1], 1)


def direct_down_chain(x, out):
    return mean_of_runs(F.pixel_unshuffle(x, 4), out)


def direct_up_chain(x, out):
    return F.pixel_shuffle(x.repeat_interleave(16 * out // x.shape[1], 1), 4)


# Widths in and out: two that double (or halve), which take the fused road, and others, which do not.
CASES = [
    *((pool_down, pool_down_chain, i, o) for i, o in [(4, 8), (3, 6), (4, 4), (8, 4), (4, 16), (12, 16), (3, 2)]),
    *((direct_down, direct_down_chain, i, o) for i, o in [(4, 8), (3, 6), (4, 4), (8, 4), (2, 32), (3, 8)]),
    *((pool_up, pool_up_chain, i, o) for i, o in [(8, 4), (12, 6), (4, 4), (16, 4), (4, 3), (16, 12)]),
    *((direct_up, direct_up_chain, i, o) for i, o in [(8, 4), (6, 3), (4, 4), (4, 8), (32, 2), (8, 3)]),
]
SHORTCUTS = pytest.mark.parametrize("fused, chain, i, o", CASES, ids=lambda v: getattr(v, "__name__", v))
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def inputs(fused, i, h, w, layout=torch.contiguous_format, batch=2):
    """Noise in float64, of a size that the shortcut takes: on the way down, sides are multiples of 4."""
    f = 4 if fused in (pool_down, direct_down) else 1
    return torch.randn(batch, i, f * h, f * w, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()


@SHORTCUTS
@patient
@given(h=st.integers(1, 5), w=st.integers(1, 5), layout=st.sampled_from(LAYOUTS), batch=st.integers(1, 3))
def test_a_fused_shortcut_is_the_chain_that_defines_it_and_so_is_its_gradient(fused, chain, i, o, h, w, layout, batch):
    x = inputs(fused, i, h, w, layout, batch)
    y, expected = fused(x, o), chain(x, o)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)         # means are summed in another order
    slope = torch.randn_like(expected)
    gradient, wanted = (torch.autograd.grad(v, x, slope)[0] for v in (y, expected))
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@SHORTCUTS
def test_the_gradient_of_a_shortcut_is_what_finite_differences_say(fused, chain, i, o):
    assert torch.autograd.gradcheck(lambda x: fused(x, o), inputs(fused, i, 1, 2, batch=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fused, chain", [(pool_up, pool_up_chain), (direct_up, direct_up_chain)])
@pytest.mark.parametrize("i, o", [(8, 4), (4, 4)])
def test_the_way_up_only_copies_so_it_is_its_chain_bit_for_bit(fused, chain, i, o, dtype):
    x = inputs(fused, i, 3, 2).to(dtype)
    assert torch.equal(fused(x, o), chain(x, o))


@pytest.mark.parametrize("i, o", [(8, 4), (4, 4), (8, 8)])
def test_direct_down_undoes_direct_up(i, o):
    z = torch.randint(-128, 128, (2, i, 3, 5)).float()          # sums of whole numbers are exact
    assert torch.equal(direct_down(direct_up(z, o), i), z)


@pytest.mark.parametrize(
    "fused, i, o", [(pool_up, 6, 3), (pool_up, 8, 3), (direct_up, 8, 0), (direct_down, 4, 3), (pool_down, 4, 3)]
)
def test_a_shortcut_refuses_widths_that_do_not_fit(fused, i, o):
    with pytest.raises(ValueError, match=r"multiple|divisor"):
        fused(torch.zeros(1, i, 4, 4), o)


@pytest.mark.parametrize("block", [DownBlock(4, 8, "pool"), DownBlock(4, 8, "direct"), DownBlock(4, 4, "pool")])
@pytest.mark.parametrize("H, W", [(5, 5), (4, 5), (6, 6), (8, 7)])
def test_a_side_that_is_not_a_multiple_of_four_is_refused_and_not_cropped(block, H, W):
    with pytest.raises(ValueError, match=f"multiples of 4, got {H}×{W}; pad or crop"):
        block(torch.zeros(1, 4, H, W))


# ---- an untrained block


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    "block, shortcut, kind, i, o",
    [
        (DownBlock, pool_down, "pool", 16, 32),
        (DownBlock, direct_down, "direct", 16, 32),
        (DownBlock, pool_down, "pool", 16, 16),
        (DownBlock, direct_down, "direct", 12, 16),
        (UpBlock, pool_up, "pool", 32, 16),
        (UpBlock, direct_up, "direct", 32, 16),
        (UpBlock, pool_up, "pool", 16, 16),
        (UpBlock, direct_up, "direct", 16, 12),
    ],
)
def test_an_untrained_down_or_up_block_is_its_shortcut_bit_for_bit(block, shortcut, kind, i, o, dropout, training):
    x = torch.randn(2, i, 8, 12)
    assert torch.equal(block(i, o, kind, dropout=dropout).train(training)(x), shortcut(x, o))


@pytest.mark.parametrize("block, shortcut, i, o", [(DownBlock, pool_down, 16, 32), (UpBlock, pool_up, 32, 16)])
def test_without_zero_init_a_block_is_more_than_its_shortcut(block, shortcut, i, o):
    x = torch.randn(2, i, 8, 8)
    block = block(i, o, "pool", zero_init=False)
    torch.testing.assert_close(block(x), block.branch(x) + shortcut(x, o))
    assert block.branch(x).abs().mean() > 0.01


@pytest.mark.parametrize("block", [DownBlock(16, 32, "none"), UpBlock(32, 16, "none")])
def test_without_a_shortcut_a_block_is_its_branch_and_does_not_start_at_zero(block):
    x = torch.randn(2, block.branch[0][2].in_channels, 8, 8)
    assert torch.equal(block(x), block.branch(x))
    assert block(x).abs().mean() > 0.01


@pytest.mark.parametrize("training", [True, False])
def test_an_untrained_residual_block_of_one_width_is_the_identity_bit_for_bit(training):
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(ResidualBlock(16, 16, dropout=0.5).train(training)(x), x)


def test_an_untrained_residual_block_that_changes_width_is_its_1x1_convolution():
    x, block = torch.randn(2, 16, 5, 7), ResidualBlock(16, 24)
    assert block.shortcut.kernel_size == (1, 1)
    assert torch.equal(block(x), F.conv2d(x, block.shortcut.weight, block.shortcut.bias))


@pytest.mark.parametrize("i, o", [(32, 16), (16, 32), (16, 16)])
def test_an_untrained_middle_stage_is_its_shortcuts(i, o):
    x, stage = torch.randn(2, i, 4, 6), MiddleStage(i, o)
    first, second = (block.shortcut for block in stage.branch)
    assert torch.equal(stage(x), stage.shortcut(x) + second(first(x)))
    assert stage.branch[0].branch[0][2].out_channels == max(i, o)        # the inner width


# ---- units and shapes


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_is_group_norm_then_silu_then_a_3x3_convolution(stride):
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
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])          # what is kept is scaled by 1 / (1 - p)


@pytest.mark.parametrize("groups, i", [(8, 16), (8, 32), (8, 12), (8, 3), (5, 20), (32, 16), (1, 7)])
@pytest.mark.parametrize("unit", [NormActConv, NormActUp])
def test_group_norm_has_the_greatest_common_divisor_of_groups_and_width(unit, groups, i):
    assert unit(i, 4, groups=groups)[0].num_groups == gcd(groups, i)


@pytest.mark.parametrize("block", [DownBlock, UpBlock, ResidualBlock, MiddleStage])
def test_every_norm_of_a_block_has_the_groups_that_were_asked_for(block):
    norms = [module for module in block(32, 16, groups=4).modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) >= 2 and {norm.num_groups for norm in norms} == {4}


@patient
@given(h=st.integers(1, 7), w=st.integers(1, 7))
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_every_kernel_doubles_the_side_exactly(kernel, h, w):
    unit = NormActUp(16, 6, kernel)
    assert unit[2].kernel_size == (kernel, kernel)
    assert unit(torch.zeros(1, 16, h, w)).shape == (1, 6, 2 * h, 2 * w)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("shortcut", ["pool", "direct", "none"])
def test_down_divides_the_side_by_four_and_up_multiplies_it(shortcut, kernel):
    x = torch.zeros(2, 8, 12, 20)
    z = DownBlock(8, 16, shortcut)(x)
    assert z.shape == (2, 16, 3, 5)
    up = UpBlock(16, 8, shortcut, kernel)
    assert up(z).shape == x.shape
    assert [unit[2].kernel_size for unit in up.branch] == [(kernel, kernel)] * 2


@pytest.mark.parametrize("block", [ResidualBlock, MiddleStage])
def test_residual_blocks_and_middle_stages_keep_the_side(block):
    assert block(8, 12)(torch.zeros(2, 8, 3, 5)).shape == (2, 12, 3, 5)
