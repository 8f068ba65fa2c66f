"""An explorer for a picture of your own, of any size."""

import base64
import html
import io
from pathlib import Path

import ipywidgets as widgets
import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from .. import plots
from ..data import read_picture, to_model
from ..files import resource
from ..model import DCAE
from ..tiles import reconstruct
from .widgets import Explorer, decibels, label, png


def upload(model: DCAE, photo: str | Path | None = None) -> Explorer:
    """Choose a picture of your own and see it pass through the model in overlapping tiles; begins with a photo."""
    file = widgets.FileUpload(accept=".png,.jpg,.jpeg,.webp", description="your picture")
    bar = widgets.FloatProgress(0, min=0, max=1, layout=widgets.Layout(width="200px", visibility="hidden"))
    view = widgets.ToggleButtons(options=["original", "reconstruction", "error × 8"], value="reconstruction")
    status, save = label(""), widgets.HTML()
    pictures = {name: widgets.Image(layout={"max_width": "none"}) for name in view.options}
    stack = widgets.VBox([pictures[view.value]], layout={"align_items": "flex-start"}).add_class("dcae-scroll")
    view.observe(lambda _: stack.set_trait("children", [pictures[view.value]]), "value")
    # Jupyter's server closes the connection on larger messages, before the kernel sees them.
    hint = "<small>PNG, JPEG or WebP of up to 10 MB; for a larger one, upload(model, photo=path)</small>"

    def show(source: Path | io.BytesIO, name: str) -> dict[str, Tensor]:
        x = to_model(read_picture(source, name))
        bar.value, bar.layout.visibility = 0, "visible"
        y = reconstruct(model, x, after_row=lambda fraction: setattr(bar, "value", fraction))
        bar.layout.visibility = "hidden"
        shown = dict(zip(view.options, (x, y, plots.error_maps(y, x, gain=8))))
        for key, picture in shown.items():
            pictures[key].value = png(picture)
        status.value = f"{html.escape(name)}: {x.shape[2]}×{x.shape[1]} pixels, {decibels(y, x)}"
        link, stem = base64.b64encode(pictures["reconstruction"].value).decode(), html.escape(Path(name).stem)
        attributes = f'class="jupyter-button" download="{stem}-dcae.png" href="data:image/png;base64,{link}"'
        save.value = f"<a {attributes}>save the result</a>"
        return shown

    def draw() -> None:
        # a tuple of files in ipywidgets 8, a dict by their names in 7
        files = file.value if isinstance(file.value, dict) else {one["name"]: one for one in file.value}
        for name, one in files.items():
            show(io.BytesIO(one["content"]), name)

    photo = Path(photo).expanduser() if photo else resource("photos") / "cat.webp"
    shown = show(photo, photo.name)
    middle = torch.stack([center_crop(x, [min(96, side) for side in x.shape[1:]]) for x in shown.values()])
    still = plots.image_rows({"middle": middle}, [*shown])
    rows = [widgets.HBox([file, save, bar]), status, view, stack, label(hint)]
    return Explorer(rows, {"file": file}, pictures, still, draw)
