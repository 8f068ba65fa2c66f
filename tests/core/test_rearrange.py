"""The rearrangements lose nothing, and order channels as their docstrings say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dcae_lib import average_channels, channel_to_space, duplicate_channels, space_to_channel

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
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x.to(draw(st.sampled_from(dtypes))))


@given(st.data(), factors, widths, sides, sides)
def test_either_undoes_the_other_bit_for_bit(data, r, C, h, w):
    for there, back, shape, expected in (
        (space_to_channel, channel_to_space, (C, h * r, w * r), (C * r * r, h, w)),
        (channel_to_space, space_to_channel, (C * r * r, h, w), (C, h * r, w * r)),
    ):
        x = data.draw(tensors(*shape))
        y = there(x, r)
        assert y.shape == (len(x), *expected) and y.dtype == x.dtype
        assert torch.equal(back(y, r), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_have_the_order_of_the_docstring_and_of_torch(layout):
    r, C, h, w = 3, 2, 2, 4
    x = LAYOUTS[layout](torch.arange(C * h * r * w * r).view(1, C, h * r, w * r))
    z = space_to_channel(x, r)
    for c, i, j, y, column in np.ndindex(C, r, r, h, w):
        assert z[0, c * r**2 + i * r + j, y, column] == x[0, c, r * y + i, r * column + j]
    assert torch.equal(z, F.pixel_unshuffle(x, r)) and torch.equal(channel_to_space(z, r), F.pixel_shuffle(z, r))


@given(st.data(), widths, widths, sides, sides)
def test_average_channels_is_the_mean_over_runs_of_neighbours(data, out, run, h, w):
    x = data.draw(tensors(out * run, h, w, [torch.float64])) / 7
    np.testing.assert_allclose(average_channels(x, out), x.numpy().reshape(len(x), out, run, h, w).mean(2), rtol=1e-12)
    assert all(average_channels(x.to(dtype), out).dtype == dtype for dtype in FLOATS)


@given(st.data(), widths, widths, sides, sides)
def test_duplicate_channels_is_repeat_interleave_and_averaging_undoes_it(data, C, times, h, w):
    x = data.draw(tensors(C, h, w))
    y = duplicate_channels(x, C * times)
    assert y.dtype == x.dtype
    assert torch.equal(y, x.repeat_interleave(times, 1))
    assert torch.equal(average_channels(y.double(), C), x.double())  # sums of whole numbers are exact
    y[:, 0] = 0
    assert times == 1 or torch.equal(y[:, 1], x[:, 0])  # copies share no memory


WRONG = [
    (space_to_channel, 5, "must be multiples of 5, got 8×6; pad or crop the image first"),
    (space_to_channel, 4, "must be multiples of 4, got 8×6"),  # one side is not
    (channel_to_space, 2, "must be a multiple of 2² = 4, got 6"),
    *((average_channels, n, f"averaged into {n} equal runs; choose a divisor of 6") for n in (4, 0, 12)),
    *((duplicate_channels, n, f"6 channels cannot be duplicated into {n}; choose a multiple of 6") for n in (9, 3, 0)),
]


@pytest.mark.parametrize("function, number, message", WRONG)
def test_errors_say_what_to_do(function, number, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(2, 6, 8, 6), number)
    for x in (torch.zeros(6, 8, 6), torch.zeros(1, 2, 6, 8, 6)):
        with pytest.raises(ValueError, match=r"images \[B, C, H, W\], got shape .*; add an axis with x\[None\]"):
            function(x, 6)
