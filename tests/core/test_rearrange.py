"""The rearrangements lose nothing, and order channels as their docstrings say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dcae_lib import average_channels, channel_to_space, duplicate_channels, space_to_channel

patient = settings(deadline=None)                           # a busy core is no failure

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [torch.uint8, torch.int64, torch.bool, *FLOATS]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "columns first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "one image, many times": lambda x: x[:1].expand(x.shape),
}
factors, sides, widths = st.integers(1, 5), st.integers(1, 6), st.integers(1, 4)


@st.composite
def tensors(draw, C: int, H: int, W: int, dtypes=DTYPES) -> torch.Tensor:
    """Whole numbers, which every dtype holds exactly, in any memory layout."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randint(0, 256, (draw(st.integers(0, 3)), C, H, W), generator=generator)
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    return LAYOUTS[layout](x.to(draw(st.sampled_from(dtypes))))


@patient
@given(st.data(), factors, widths, sides, sides)
def test_channel_to_space_undoes_space_to_channel_bit_for_bit(data, r, C, h, w):
    x = data.draw(tensors(C, h * r, w * r))
    z = space_to_channel(x, r)
    assert z.shape == (len(x), C * r * r, h, w) and z.dtype == x.dtype
    assert torch.equal(channel_to_space(z, r), x)


@patient
@given(st.data(), factors, widths, sides, sides)
def test_space_to_channel_undoes_channel_to_space_bit_for_bit(data, r, C, h, w):
    z = data.draw(tensors(C * r * r, h, w))
    x = channel_to_space(z, r)
    assert x.shape == (len(z), C, h * r, w * r) and x.dtype == z.dtype
    assert torch.equal(space_to_channel(x, r), z)


@patient
@given(st.data(), factors, widths, sides, sides)
def test_they_are_what_torch_calls_pixel_unshuffle_and_pixel_shuffle(data, r, C, h, w):
    x = data.draw(tensors(C, h * r, w * r))
    assume(len(x))                                          # torch leaves the shape of an empty batch as it was
    z = F.pixel_unshuffle(x, r)
    assert torch.equal(space_to_channel(x, r), z)
    assert torch.equal(channel_to_space(z, r), F.pixel_shuffle(z, r))


def test_channel_c_r2_plus_i_r_plus_j_holds_row_i_column_j_of_each_patch_of_channel_c():
    r, C, h, w = 3, 2, 2, 4
    x = torch.arange(C * h * r * w * r).view(1, C, h * r, w * r)
    z = space_to_channel(x, r)
    for c, i, j, y, column in np.ndindex(C, r, r, h, w):
        assert z[0, c * r**2 + i * r + j, y, column] == x[0, c, r * y + i, r * column + j]


@patient
@given(st.data(), widths, widths, sides, sides)
def test_averaging_undoes_duplicating(data, C, times, h, w):
    x = data.draw(tensors(C, h, w, [torch.float32, torch.float64]))     # sums of whole numbers are exact in these
    assert torch.equal(average_channels(duplicate_channels(x, C * times), C), x)


@patient
@given(st.data(), widths, widths, sides, sides)
def test_average_channels_is_the_mean_over_runs_of_neighbours(data, out, run, h, w):
    x = data.draw(tensors(out * run, h, w, [torch.float64])) / 7
    expected = x.numpy().reshape(len(x), out, run, h, w).mean(2)
    np.testing.assert_allclose(average_channels(x, out).numpy(), expected, rtol=1e-12)


@patient
@given(st.data(), st.sampled_from(FLOATS))
def test_average_channels_keeps_the_dtype(data, dtype):
    assert average_channels(data.draw(tensors(6, 2, 2, [dtype])), 3).dtype == dtype


@patient
@given(st.data(), widths, widths, sides, sides)
def test_duplicate_channels_is_repeat_interleave(data, C, times, h, w):
    x = data.draw(tensors(C, h, w))
    y = duplicate_channels(x, C * times)
    assert y.dtype == x.dtype
    assert torch.equal(y, x.repeat_interleave(times, 1))


def test_what_duplicate_channels_returns_shares_no_memory_between_copies():
    y = duplicate_channels(torch.zeros(1, 2, 1, 1), 4)
    y[:, 0] = 1
    assert y.sum() == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: space_to_channel(x, 5), r"must be multiples of 5, got 8×6; pad or crop the image first"),
        (lambda x: space_to_channel(x, 4), r"must be multiples of 4, got 8×6; pad or crop"),     # one side is not
        (lambda x: channel_to_space(x, 2), r"must be a multiple of 2² = 4, got 6"),
        (lambda x: average_channels(x, 4), r"6 channels cannot be averaged into 4 equal runs; choose a divisor of 6"),
        (lambda x: average_channels(x, 0), r"choose a divisor of 6"),
        (lambda x: average_channels(x, 12), r"choose a divisor of 6"),
        (lambda x: duplicate_channels(x, 9), r"6 channels cannot be duplicated into 9; choose a multiple of 6"),
        (lambda x: duplicate_channels(x, 3), r"choose a multiple of 6"),
        (lambda x: duplicate_channels(x, 0), r"choose a multiple of 6"),
        (lambda x: space_to_channel(x, 0), r"factor must be 1 or more, got 0"),
        (lambda x: channel_to_space(x, -1), r"factor must be 1 or more, got -1"),
        (lambda x: space_to_channel(x[0], 2), r"\[B, C, H, W\], got shape \[6, 8, 6\]; add an axis with x\[None\]"),
        (lambda x: channel_to_space(x[0], 1), r"add an axis with x\[None\]"),
        (lambda x: average_channels(x[None], 3), r"\[B, C, H, W\], got shape \[1, 2, 6, 8, 6\]"),
        (lambda x: duplicate_channels(x[0], 12), r"add an axis with x\[None\]"),
    ],
)
def test_an_error_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 6, 8, 6))
