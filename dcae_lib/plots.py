"""Figures in one style: the original left or above, the result right or below, pixels never smoothed."""

import io

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .data import to_uint8

WIDTH = 8.0  # inches, of every figure
# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8A8A8A")
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = PALETTE


def use_style() -> None:
    """Set up matplotlib for the course; the opaque background keeps figures readable on light and dark pages."""
    plt.style.use("dcae_lib.course")  # course.mplstyle
    plt.rc("figure", figsize=(WIDTH, 3.2))
    plt.rc("axes", prop_cycle=plt.cycler(color=PALETTE))


def figure_png(fig: Figure, dpi: float | str = "figure") -> bytes:
    """Return a figure as a PNG file at `dpi` dots per inch ("figure": its own) and close it."""
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=dpi)
    plt.close(fig)
    return file.getvalue()


def show_image(ax: Axes, x: Tensor, title: str = "", bound: float | None = None) -> None:
    """Draw one picture: [3, H, W] in colour (uint8, or floats in [-1, 1]) or [H, W] floats, blue below 0, red above.

    bound: the magnitude with the strongest colour; None takes the largest in x.
    """
    ax.imshow(in_colour(x, bound).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def image_rows(rows: dict[str, Tensor], titles: list[str] | None = None) -> Figure:
    """Draw one row of pictures per entry, its name on the left: [N, 3, H, W] or [N, H, W], as in `show_image`."""
    columns = max(len(pictures) for pictures in rows.values())
    H, W = next(iter(rows.values())).shape[-2:]
    height = (WIDTH - 1.1) / columns * H / W * len(rows) + (0.4 if titles else 0.1)
    fig, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, height), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax in line[len(pictures) :]:
            ax.axis("off")
        for ax, picture in zip(line, pictures):
            show_image(ax, picture)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, title in zip(axes[0], titles or []):
        ax.set_title(title)
    return fig


def error_maps(y: Tensor, x: Tensor, gain: float = 4.0) -> Tensor:
    """Return |y - x| times gain as pictures from black to white: floats in [-1, 1], [..., 3, H, W] → the same."""
    return ((y - x).abs() * gain - 1).clamp(-1, 1)


def pixel_grid(ax: Axes, values, colors, title: str = "") -> None:
    """Draw coloured squares with a value in each: both [H, W]; a colour is an index into PALETTE."""
    values, colors = np.asarray(values), np.asarray(colors)
    for (y, x), value in np.ndenumerate(values):
        color = PALETTE[colors[y, x]]
        ax.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white"))
        ink = "white" if color in (BLUE, GREEN) else "black"
        ax.text(x + 0.5, y + 0.5, str(value), ha="center", va="center", fontsize=8, color=ink)
    ax.set(xlim=(0, values.shape[1]), ylim=(values.shape[0], 0), aspect="equal", title=title)
    ax.axis("off")


def in_colour(x: Tensor, bound: float | None = None) -> Tensor:
    """Return a picture, as `show_image` takes it, as uint8 [3, H, W]."""
    if x.ndim == 2:
        return colorize((x.detach() / (bound or float(x.abs().max()) or 1.0) + 1) / 2, "RdBu_r")
    return x if x.dtype == torch.uint8 else to_uint8(x)


def colorize(x: Tensor, cmap: str = "magma") -> Tensor:
    """Map numbers from 0 to 1 to the colours of a matplotlib colormap: [H, W] → uint8 [3, H, W]."""
    return torch.from_numpy(plt.get_cmap(cmap)(x.cpu().numpy(), bytes=True)[..., :3].copy()).permute(2, 0, 1)


def log_change(delta: Tensor, near: Tensor, scale: int = 8) -> Tensor:
    """Draw each pixel's change on a log scale, from 0.1 level (dark) to 255 (bright), and outline a region in white.

    delta: [3, H, W], pixels in [-1, 1]; near, the region: bool [H, W] → uint8 [3, scale·H, scale·W].
    """
    levels = (delta.abs().amax(0) * 127.5).clamp(0.1, 255)
    brightness = (levels.log10() + 1) / (np.log10(255) + 1)
    brightness, near = (v.repeat_interleave(scale, 0).repeat_interleave(scale, 1) for v in (brightness, near.float()))
    edge = F.max_pool2d(near[None], 5, 1, 2)[0] > near  # two pixels wide, around the region
    return torch.where(edge.cpu(), torch.tensor(255, dtype=torch.uint8), colorize(brightness))


def channel_sheet(z: Tensor, bounds: Tensor, stamps: Tensor, titles: list[str]) -> Figure:
    """Draw each channel's map above its stamp, 8 to a row: z [C, h, w] coloured to ±bounds [C], stamps [C, 3, H, W]."""
    rows = -(-len(z) // 8)
    fig, axes = plt.subplots(2 * rows, 8, figsize=(WIDTH, 2.3 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    pairs = zip(axes[::2].flat, axes[1::2].flat)
    for (above, below), values, bound, stamp, title in zip(pairs, z, bounds, stamps, titles):
        show_image(above, values, title, float(bound))
        show_image(below, stamp)
    return fig
