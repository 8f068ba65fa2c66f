"""Figures in one style: the original left or above, the result right or below, pixels never smoothed."""

import io
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .data import to_uint8
from .loop import State as Run

WIDTH = 8.0                                                 # inches, of every figure
# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8A8A8A",
)
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY)


def use_style() -> None:
    """Set matplotlib up for the course: an opaque paper colour, so that figures read on light and on dark pages."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.dpi": 100,
            "figure.facecolor": "#FCFCFA",
            "savefig.facecolor": "#FCFCFA",
            "axes.facecolor": "#FCFCFA",
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E4E4E0",
            "axes.axisbelow": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "figure.constrained_layout.use": True,
        }
    )


def figure_png(fig: Figure, dpi: float | str = "figure") -> bytes:
    """A figure as a PNG file, in dots per inch ("figure": its own); the figure is closed."""
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=dpi)
    plt.close(fig)
    return file.getvalue()


def show_image(ax: Axes, x: Tensor, title: str = "", bound: float | None = None) -> None:
    """Draw one picture: [3, H, W] in colour (uint8, or floats in [-1, 1]) or [H, W] floats, blue below 0, red above.

    The colours of floats reach to ±bound; None: to the largest.
    """
    if x.ndim == 3:
        x = x if x.dtype == torch.uint8 else to_uint8(x)
        ax.imshow(x.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    else:
        bound = bound or float(x.abs().max()) or 1.0
        ax.imshow(x.detach().cpu().numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


def image_rows(rows: dict[str, Tensor], titles: list[str] | None = None) -> Figure:
    """One row of pictures per entry, its name at the left: values are [N, 3, H, W] or [N, H, W], as in `show_image`."""
    columns = max(len(pictures) for pictures in rows.values())
    H, W = next(iter(rows.values())).shape[-2:]
    side = (WIDTH - 1.1) / columns
    fig, axes = plt.subplots(
        len(rows), columns, figsize=(WIDTH, side * H / W * len(rows) + (0.4 if titles else 0.1)), squeeze=False
    )
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax in line[len(pictures):]:
            ax.axis("off")
        for ax, picture in zip(line, pictures):
            show_image(ax, picture)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, title in zip(axes[0], titles or []):
        ax.set_title(title)
    return fig


def live_curve(place, line: float, label: str) -> Callable[[Run], None]:
    """An `after_epoch` that draws the PSNR on the test images while a run goes on, and when it passes a line (dB).

    `place` is where: what `IPython.display.display(display_id=True)` returned.
    """

    def draw(run: Run) -> None:
        psnr = [row["psnr"] for row in run.history]
        fig, ax = plt.subplots()
        ax.plot(range(1, len(psnr) + 1), psnr, marker="o", label=f"epoch {len(psnr)}: {psnr[-1]:.2f} dB")
        ax.axhline(line, color=GREY, linestyle=":", label=f"{label}: {line:.2f} dB")
        passed = next((epoch for epoch, value in enumerate(psnr, 1) if value > line), None)
        if passed:
            ax.annotate(f"passed in epoch {passed}", (passed, line), (0, 8), textcoords="offset points", ha="right")
        ax.set(xlabel="epoch", ylabel="PSNR on test images, dB", xlim=(0.5, run.config.epochs + 0.5))
        ax.legend(loc="lower right")
        place.update(fig)
        plt.close(fig)

    return draw


def error_maps(y: Tensor, x: Tensor, gain: float = 4.0) -> Tensor:
    """Where a reconstruction differs: |y - x| times gain, as a picture from black to white, clamped.

    Two pictures or batches [..., 3, H, W], floats in [-1, 1] → the same.
    """
    return ((y - x).abs() * gain - 1).clamp(-1, 1)


def contact_sheet(z: Tensor, columns: int = 4) -> Tensor:
    """All channels of one latent side by side, a gap between them: [C, h, w] → [rows·(h+1)-1, columns·(w+1)-1]."""
    rows = -(-len(z) // columns)
    tiles = F.pad(z, (0, 1, 0, 1, 0, rows * columns - len(z))).unflatten(0, (rows, columns))    # [rows, columns, h+1, w+1]
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-1, :-1]


def pixel_grid(ax: Axes, values, colors, title: str = "") -> None:
    """A grid of coloured squares with a value written in each: both [H, W]; a colour is an index into PALETTE."""
    values, colors = np.asarray(values), np.asarray(colors)
    H, W = values.shape
    for y in range(H):
        for x in range(W):
            ax.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=PALETTE[colors[y, x]], edgecolor="white"))
            ink = "white" if PALETTE[colors[y, x]] in (BLUE, GREEN) else "black"
            ax.text(x + 0.5, y + 0.5, str(values[y, x]), ha="center", va="center", fontsize=8, color=ink)
    ax.set(xlim=(0, W), ylim=(H, 0), aspect="equal", title=title)
    ax.axis("off")


def glow(share: Tensor) -> Tensor:
    """From 0, dark, to 1, bright: [H, W] → uint8 [3, H, W]."""
    return torch.from_numpy(plt.get_cmap("magma")(share.cpu().numpy(), bytes=True)[..., :3].copy()).permute(2, 0, 1)


def log_change(delta: Tensor, near: Tensor, scale: int = 8) -> Tensor:
    """How much each pixel changed, from 0.1 (dark) to 255 levels (bright) on a log scale, the edge of a region in white.

    delta: [3, H, W], in units of [-1, 1]; near: bool [H, W] → uint8 [3, scale·H, scale·W].
    """
    levels = (delta.abs().amax(0) * 127.5).clamp(0.1, 255)
    share = ((levels.log10() + 1) / (np.log10(255) + 1)).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    near = near.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    edge = torch.zeros_like(near)
    edge[:, 2:] |= near[:, 2:] != near[:, :-2]              # two pixels wide
    edge[2:] |= near[2:] != near[:-2]
    return torch.where(edge.cpu(), torch.tensor(255, dtype=torch.uint8), glow(share))


def channel_sheet(z: Tensor, bounds: Tensor, stamps: Tensor, titles: list[str], columns: int = 8) -> Figure:
    """Map and stamp of each channel, one below the other: z [C, h, w] coloured to ±bounds [C], stamps [C, 3, H, W]."""
    rows = -(-len(z) // columns)
    fig, axes = plt.subplots(2 * rows, columns, figsize=(WIDTH, 2.3 * rows), squeeze=False)
    for ax in axes.flat[len(z) * 2:]:
        ax.axis("off")
    for k, (values, bound, stamp, title) in enumerate(zip(z, bounds, stamps, titles)):
        row, column = 2 * (k // columns), k % columns
        show_image(axes[row, column], values, title, float(bound))
        show_image(axes[row + 1, column], stamp)
    return fig


def middle(x: Tensor, side: int) -> Tensor:
    """The middle of a picture, at most side × side: [..., H, W] → [..., h, w]."""
    top, left = (max(0, (length - side) // 2) for length in x.shape[-2:])
    return x[..., top:top + side, left:left + side]
