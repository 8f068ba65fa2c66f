"""An explorer of the codec: the best picture within a budget of bytes."""

from functools import lru_cache

import ipywidgets as widgets
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


def _budgets(image: Tensor, files: dict[str, list[Encoded]], constant: dict[str, int]) -> Figure:
    """Draw the still figure: a row for each codec at growing budgets, without the bytes that all of its files share."""
    rows, sizes = {"original": image[None]}, (100, 150, 250, 400)
    for name, of in counted(files, False, constant).items():
        chosen = [best(of, size) for size in sizes]
        rows[name] = torch.stack([file.image if file else NOTHING.expand_as(image) for file in chosen])
    return plots.image_rows(rows, [f"{size} bytes" for size in sizes])
