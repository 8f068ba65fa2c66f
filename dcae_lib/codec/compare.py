"""Explorers of the codec beside those that people use: the best picture for so many bytes, and curves of rate and distortion."""

from functools import lru_cache
from typing import NamedTuple

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import features
from torch import Tensor

from .. import plots
from .baselines import decode, encode
from .codec import Codec
from ..data import ImageSet, to_model
from ..explore.explorers import SHOWN
from ..metrics import psnr
from ..explore.widgets import Explorer, Picture, Redraw, Thumbnails, label, slider

NAMES = ("DCAE", "AVIF", "WebP", "JPEG")
STANDARD = "JPEG, standard tables"                          # longer, but all files at one quality share more of it
# As many as an image can be prepared with in half a second; those of AVIF and ours are about ten bytes apart.
QUALITIES = {"DCAE": range(0, 101, 4), "AVIF": range(0, 101, 4), "WebP": range(101), "JPEG": range(101)}
WAYS = {"whole files": "whole", "without what all files share": "stripped", "500 images in one file": "mosaic"}
COLORS = {
    "DCAE": plots.BLUE, "AVIF": plots.RED, "WebP": plots.GREEN, "JPEG": plots.ORANGE, "JPEG XL": plots.PINK,
    "JPEG 2000": plots.SKY, "KLT": plots.GREY,
}


# ---- the best picture for so many bytes


class Encoded(NamedTuple):
    """A file and what is in it. size: the bytes that count; image: uint8 [3, H, W]; psnr: in dB."""

    name: str
    quality: int
    data: bytes
    size: int
    image: Tensor
    psnr: float


def candidates(codec: Codec, image: Tensor) -> dict[str, list[Encoded]]:
    """An image, uint8 [3, H, W], as a file of each codec at each of QUALITIES; of JPEG twice. No AVIF where Pillow has none."""
    files = {}
    for kind in (*NAMES, STANDARD):
        name = kind.split(",")[0]
        if name == "AVIF" and not features.check("avif"):
            continue
        if name == "DCAE":                                  # to read all of its files would take a second
            data = [codec.compress(image, quality) for quality in QUALITIES[name]]
            decoded = torch.cat([codec.preview(image, quality) for quality in QUALITIES[name]])
        else:
            changes = dict(optimize=False) if kind == STANDARD else {}
            data = [encode(name, image, quality, **changes) for quality in QUALITIES[name]]
            decoded = torch.stack([decode(file) for file in data])
        scores = psnr(to_model(decoded), to_model(image).expand(decoded.shape)).tolist()
        files[kind] = [Encoded(name, *found) for found in zip(QUALITIES[name], data, map(len, data), decoded, scores)]
    return files


def constants(record: dict) -> dict[str, dict[int, int]]:
    """From what bench/rd.py recorded: how many bytes all files of a codec at one quality have alike, {name: {quality: bytes}}."""
    found = {name: record.get("curves", {}).get(name, {}).get("stripped", []) for name in NAMES}
    return {name: {point["quality"]: point["constant"] for point in points} for name, points in found.items() if points}


def counted(files: dict[str, list[Encoded]], headers: bool, constant: dict[str, dict[int, int]]) -> dict[str, list[Encoded]]:
    """The candidates with the sizes that count: whole files, or without what those of a codec at one quality have alike.

    Between two recorded qualities counts the smaller of their constants, so that no byte is left out that a file may need;
    beyond the last one, that one's. A codec that `constant` lacks counts whole.
    """
    names = [name for name in NAMES if name in files]
    if headers:
        return {name: files[name] for name in names}
    found = {}
    for name in names:
        known = constant.get(name, {})
        kind = STANDARD if name == "JPEG" and known else name
        found[name] = [file._replace(size=max(0, file.size - _shared(known, file.quality))) for file in files[kind]]
    return found


def _shared(known: dict[int, int], quality: int) -> int:
    qualities = sorted(known)
    near = [q for q in qualities if q <= quality][-1:] + [q for q in qualities if q >= quality][:1]
    return min((known[q] for q in near), default=0)


def best(files: list[Encoded], budget: int) -> Encoded | None:
    """The file of at most so many bytes that has the highest PSNR; None if all are longer. A higher quality is not always longer."""
    return max((file for file in files if file.size <= budget), key=lambda file: (file.psnr, -file.size), default=None)


def within(
    codec: Codec, image: Tensor, budget: int, headers: bool = True, constant: dict[str, dict[int, int]] | None = None
) -> dict[str, Encoded | None]:
    """The best that DCAE, AVIF, WebP and JPEG make of an image, uint8 [3, H, W], in so many bytes; None where nothing fits.

    headers=False leaves out the bytes that all files of a codec at one quality have alike: `constants(record)` has them,
    measured on images of 32×32. AVIF is missing where this Pillow cannot write it. ValueError for headers=False without them.
    """
    if not headers and constant is None:
        raise ValueError("to leave out what files share, say how much that is: constant=constants(record)")
    files = counted(candidates(codec, image), headers, constant or {})
    return {name: best(of, budget) for name, of in files.items()}


def budget(codec: Codec, images: ImageSet, record: dict) -> Explorer:
    """Give each codec the same number of bytes and see what it makes of them; and where in the picture ours go.

    record: what bench/rd.py wrote, for the bytes that files share.
    """
    constant, x = constants(record), images.images[:SHOWN]
    prepared = lru_cache(SHOWN)(lambda k: candidates(codec, x[k]))          # half a second for each
    names = list(counted(prepared(0), True, {}))
    pick, message, said = Thumbnails(x), label(""), label("")
    size = slider("bytes", 400, 60, 600, 4, width=440, kind=widgets.IntSlider)
    headers = widgets.Checkbox(True, indent=False, description="count headers")
    original, spent = Picture(""), Picture("")
    pictures = {name: Picture("") for name in names}

    def draw() -> None:
        k = pick.choice.value
        files = counted(prepared(k), headers.value, constant)
        found = {name: best(of, size.value) for name, of in files.items()}
        ours = found["DCAE"]
        bits = codec.costs(x[k], ours.quality)[0].sum(0) if ours else torch.zeros(1, 1)
        original.show(x[k], f"<b>original</b><br>{x[k].numel():,} bytes")
        for name, picture in pictures.items():
            file = found[name]
            picture.show(file.image if file else NOTHING, _title(files[name], file))
        spent.show(plots.glow(bits / bits.max().clamp(min=1e-12)), f"<b>DCAE, bits per site</b><br>0 dark … {bits.max():.0f} bright")
        said.value = "counted: whole files" if headers.value else "not counted: what all files of a codec at one quality have alike"

    Redraw(draw, message).watch(pick.choice, size, headers)
    draw()
    rows = [widgets.HBox([original, pictures["DCAE"], spent]), widgets.HBox([pictures[name] for name in names[1:]])]
    if "AVIF" not in names:
        rows.append(label("AVIF is left out: this Pillow writes none; 11.3 and later do, as installed from PyPI"))
    return Explorer(
        [pick, widgets.HBox([size, headers]), said, *rows],
        {"image": pick.choice, "bytes": size, "headers": headers},
        {"original": original, **pictures, "bits": spent},
        message,
        _budgets(x[0], prepared(0), constant),
    )


NOTHING = torch.full((3, 1, 1), 128, dtype=torch.uint8)     # shown where nothing fits: reads on light and on dark pages


def _title(files: list[Encoded], found: Encoded | None) -> str:
    if found is None:
        return f"<b>{files[0].name}</b> does not fit:<br>the smallest has {min(file.size for file in files)} bytes"
    whole = len(found.data)
    size = f"{whole}" if found.size == whole else f"{found.size} of {whole}"
    return f"<b>{found.name}</b>, quality {found.quality}<br>{size} bytes, {found.psnr:.1f} dB"


def _budgets(image: Tensor, files: dict[str, list[Encoded]], constant: dict, sizes: tuple[int, ...] = (150, 400)) -> Figure:
    """The still figure: a row for each codec, whole files and those without headers for each budget."""
    tables = [(counted(files, headers, constant), size, how) for headers, how in ((True, ""), (False, "\nno headers")) for size in sizes]
    names = list(tables[0][0])
    fig, axes = plt.subplots(len(names), 1 + len(tables), figsize=(plots.WIDTH, 1.45 * len(names) + 0.2), layout="constrained")
    for ax in axes[1:, 0]:
        ax.axis("off")
    plots.show_image(axes[0, 0], image, "original")
    for name, line in zip(names, axes):
        line[1].set_ylabel(name)
        for ax, (table, size, how) in zip(line[1:], tables):
            found = best(table[name], size)
            plots.show_image(ax, found.image if found else NOTHING, f"{size} bytes{how}" if name == names[0] else "")
            least = min(file.size for file in table[name])
            ax.set_xlabel(f"{found.size} bytes, {found.psnr:.1f} dB" if found else f"at least {least} bytes", fontsize=8)
    return fig


# ---- curves


def draw_curves(ax: Axes, record: dict, metric: str = "psnr", way: str = "stripped") -> None:
    """Bits per pixel against "psnr" or "ssim", a line for each codec of the record; bytes counted in one of WAYS.

    The KLT, which has no files, stands with those without what all files share.
    """
    for name, color in COLORS.items():
        curve = record.get("curves", {}).get(name, {})
        if isinstance(curve, list):
            curve = {"stripped": curve}
        points = sorted(curve.get(way, []), key=lambda point: point["bpp"])
        if points:
            style = dict(linewidth=3, zorder=3) if name == "DCAE" else dict(linestyle="--") if name == "KLT" else dict(marker=".")
            ax.plot(*([point[key] for point in points] for key in ("bpp", metric)), color=color, label=name, **style)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda bpp, _: f"{bpp:g}")
    ax.set(xlabel="bits per pixel", ylabel="PSNR, dB" if metric == "psnr" else "SSIM")
    if ax.lines:
        ax.legend()


def curves(record: dict) -> Explorer:
    """Rate against distortion, by the metric and the way of counting that you choose; from what bench/rd.py recorded."""
    metric = widgets.ToggleButtons(options=[("PSNR", "psnr"), ("SSIM", "ssim")], style={"button_width": "auto"})
    way = widgets.ToggleButtons(options=WAYS, value="stripped", style={"button_width": "auto"})
    caption = "means over the test images of CIFAR-10; the KLT has no files, but the bits of an ideal code"
    picture, message = Picture(caption, 640, 400), label("")
    picture.image.remove_class("dcae-pixels")               # lines are to be smooth

    def figure(metric: str, way: str) -> Figure:
        fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
        draw_curves(ax, record, metric, way)
        return fig

    @lru_cache
    def drawn(metric: str, way: str) -> bytes:
        return plots.figure_png(figure(metric, way), dpi=200)

    def draw() -> None:
        picture.image.value = drawn(metric.value, way.value)

    Redraw(draw, message).watch(metric, way)
    draw()
    return Explorer([metric, way, picture], {"metric": metric, "way": way}, {"curves": picture}, message, figure("psnr", "stripped"))
