"""An explorer of the codec: the best picture within a budget of bytes."""

from functools import lru_cache
from itertools import product

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import plots
from ..codec import Codec
from ..codec.compare import Encoded, best, candidates, constants, counted
from ..data import ImageSet
from .widgets import Explorer, Picture, Thumbnails, slider

NOTHING = torch.full((3, 1, 1), 128, dtype=torch.uint8)  # shown where nothing fits: grey, on light and on dark pages


def budget(codec: Codec, images: ImageSet, record: dict) -> Explorer:
    """Give each codec the same number of bytes and compare the pictures; a map shows where in the image ours go.

    record: what bench/rd.py wrote, for the bytes that all files of a codec share.
    """
    constant, x = constants(record), images.images
    prepared = lru_cache(None)(lambda k: candidates(codec, x[k]))  # half a second per image
    names = list(counted(prepared(0), True, {}))
    pick = Thumbnails(x)
    size = slider("bytes", 400, 60, 600, 4, kind=widgets.IntSlider)
    headers = widgets.Checkbox(True, indent=False, description="count headers")
    original, spent, *results = (Picture("") for _ in ("original", "bits", *names))

    def draw() -> None:
        k = pick.value
        files = counted(prepared(k), headers.value, constant)
        chosen = {name: best(files[name], size.value) for name in names}
        ours = chosen["DCAE"]
        bits = codec.costs(x[k], ours.quality)[0].sum(0) if ours else torch.zeros(1, 1)
        original.show(x[k], f"<b>original</b><br>{x[k].numel():,} bytes")
        for picture, (name, file) in zip(results, chosen.items()):
            picture.show(file.image if file else NOTHING, _title(files[name], file))
        title = f"<b>DCAE, bits per site</b><br>0 dark … {bits.max():.0f} bright"
        spent.show(plots.colorize(bits / bits.max().clamp(min=1e-12)), title)

    rows = [pick, [size, headers], [original, results[0], spent], results[1:]]
    controls = {"image": pick, "bytes": size, "headers": headers}
    pictures = {"original": original, **dict(zip(names, results)), "bits": spent}
    return Explorer(rows, controls, pictures, _budgets(x[0], prepared(0), constant), draw)


def _title(files: list[Encoded], file: Encoded | None) -> str:
    if file is None:
        return f"<b>{files[0].name}</b> does not fit:<br>the smallest has {min(file.size for file in files)} bytes"
    size = f"{file.size}" if file.size == len(file.data) else f"{file.size} of {len(file.data)}"
    return f"<b>{file.name}</b>, quality {file.quality}<br>{size} bytes, {file.psnr:.1f} dB"


def _budgets(image: Tensor, files: dict[str, list[Encoded]], constant: dict) -> Figure:
    """Draw the still figure: a row for each codec, with and without headers at 150 and 400 bytes."""
    tables = {headers: counted(files, headers, constant) for headers in (True, False)}
    height = 1.45 * len(tables[True]) + 0.2
    fig, axes = plt.subplots(len(tables[True]), 5, figsize=(plots.WIDTH, height), layout="constrained")
    for name, line in zip(tables[True], axes):
        line[0].axis("off")
        line[1].set_ylabel(name)
        for ax, (headers, size) in zip(line[1:], product((True, False), (150, 400))):
            file = best(tables[headers][name], size)
            title = f"{size} bytes" + ("" if headers else "\nno headers")
            plots.show_image(ax, file.image if file else NOTHING, title if name == "DCAE" else "")
            smallest = f"at least {min(file.size for file in tables[headers][name])} bytes"
            ax.set_xlabel(f"{file.size} bytes, {file.psnr:.1f} dB" if file else smallest, fontsize=8)
    plots.show_image(axes[0, 0], image, "original")
    return fig
