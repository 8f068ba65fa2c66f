"""What the explorers are built of: pictures, thumbnails, a board of sites, and callbacks that never fail in silence."""

import base64
import html
import io
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data import DataError, to_uint8
from ..plots import RED, figure_png

SIDE = 192                                                  # of a picture on the screen, in CSS pixels
STYLE = """<style>
.dcae-pixels { image-rendering: pixelated; }
.dcae-label { color: var(--jp-ui-font-color1, inherit); }
.dcae-label small { line-height: 1; }
.dcae-thumbnail { background-size: cover; image-rendering: pixelated; margin: 1px; padding: 0; }
.dcae-chosen { outline: 3px solid #E69F00; outline-offset: -1px; }
.dcae-board { position: relative; overflow: hidden; }
.dcae-board > .dcae-sites { position: absolute; inset: 0; margin: 0; overflow: hidden; }
.dcae-site, .dcae-site:hover { background: transparent; border: 1px solid rgba(128, 128, 128, .3); margin: 0; padding: 0; }
.dcae-site.mod-active { background: rgba(230, 159, 0, .2); border-color: #E69F00; box-shadow: none; }
.dcae-scroll { overflow: auto; max-height: 640px; }
</style>"""


class Explorer(widgets.VBox):
    """A box of widgets; pages without a kernel (GitHub, nbviewer, PDF) show a still figure instead.

    controls   what can be moved, by name: `explorer.controls["levels"].value = 4` does what a hand would
    pictures   what is shown, by name
    message    one line under it: what went wrong, if something did
    """

    def __init__(self, rows: list, controls: dict, pictures: dict, message: widgets.HTML, still: Figure):
        super().__init__([widgets.HTML(STYLE), *rows, message])
        self.controls, self.pictures, self.message = controls, pictures, message
        self.still = base64.b64encode(figure_png(still)).decode()

    def _repr_mimebundle_(self, **kwargs):
        return {**super()._repr_mimebundle_(**kwargs), "image/png": self.still}


class Picture(widgets.VBox):
    """A picture with its title above, in CSS pixels; small pictures keep their pixels visible."""

    def __init__(self, title: str, width: int = SIDE, height: int | None = None):
        self.title = label(title)
        self.image = widgets.Image(layout=widgets.Layout(width=f"{width}px", height=f"{height or width}px"))
        self.image.add_class("dcae-pixels")
        super().__init__([self.title, self.image], layout=widgets.Layout(margin="0 8px 0 0"))
        self.add_class("dcae-picture")

    def show(self, x: Tensor, title: str | None = None) -> None:
        """x: as `png` takes it. None keeps the title."""
        self.image.value = png(x)
        if title is not None:
            self.title.value = title


def png(x: Tensor, bound: float | None = None) -> bytes:
    """A picture as a PNG file: [3, H, W] uint8, or floats in [-1, 1]; [H, W] floats, blue below 0, red above, to ±bound."""
    if x.ndim == 2:
        bound = bound or float(x.abs().max()) or 1.0
        pixels = plt.get_cmap("RdBu_r")((x.cpu().numpy() / bound + 1) / 2, bytes=True)[..., :3]
    else:
        pixels = (x if x.dtype == torch.uint8 else to_uint8(x)).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Redraw:
    """A callback that draws, and shows below what that raises: by itself, ipywidgets would only log it.

    What was shown before stays. While one message is at work the page holds back the next and sends the latest value
    when that is done (ipywidgets' throttle), so a fast hand never makes a queue. `with redraw.once():` moves many
    controls and draws one picture for all.
    """

    def __init__(self, draw: Callable[[], None], message: widgets.HTML):
        self.draw, self.message, self.paused = draw, message, False

    def __call__(self, *_) -> None:
        if self.paused:
            return
        try:
            self.draw()
            self.message.value = ""
        except DataError as error:                          # what a person can cause: one line
            self.message.value = f'<b style="color:{RED}">{html.escape(str(error))}</b>'
        except Exception:
            self.message.value = f'<pre style="color:{RED}">{html.escape(traceback.format_exc())}</pre>'

    @contextmanager
    def once(self) -> Iterator[None]:
        self.paused = True
        try:
            yield
        finally:
            self.paused = False
        self()

    def watch(self, *controls: widgets.Widget) -> None:
        """Draw whenever one of these changes its value."""
        for control in controls:
            control.observe(self, "value")


def label(text: str) -> widgets.HTML:
    """Text in the page's own colour, light or dark."""
    return widgets.HTML(text).add_class("dcae-label")


def slider(name: str, value, low, high, step, width: int = 340, kind=widgets.FloatSlider, **options) -> widgets.Widget:
    """A slider of `kind` from low to high in steps, `width` CSS pixels wide with its name and value."""
    style = {"description_width": "auto" if name else "0"}
    layout = widgets.Layout(width=f"{width}px")
    return kind(value, min=low, max=high, step=step, description=name, layout=layout, style=style, **options)


def press(name: str, callback: Callable) -> widgets.Button:
    """A button that calls back, with itself, when it is pressed."""
    button = widgets.Button(description=name, layout=widgets.Layout(width="auto"))
    button.on_click(callback)
    return button


class Thumbnails(widgets.HBox):
    """Pictures to click; `choice.value` is the number of the chosen one, and can be observed."""

    def __init__(self, images: Tensor, chosen: int = 0, name: str = "image"):
        layout = widgets.Layout(width="40px", height="40px")
        chosen = min(chosen, len(images) - 1)
        kind = f"dcae-{name}-{id(self)}"
        rules = [
            f".{kind}-{k} {{ background-image: url(data:image/png;base64,{base64.b64encode(png(x)).decode()}) }}"
            for k, x in enumerate(images)
        ]
        self.buttons = [widgets.Button(layout=layout, tooltip=f"{name} {k}") for k in range(len(images))]
        self.choice = widgets.IntText(chosen)
        for k, button in enumerate(self.buttons):
            button.add_class("dcae-thumbnail").add_class(f"{kind}-{k}")
            button.on_click(lambda _, k=k: setattr(self.choice, "value", k))
        self.buttons[chosen].add_class("dcae-chosen")
        self.choice.observe(self._mark, "value")
        box = widgets.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([widgets.HTML(f"<style>{' '.join(rules)}</style>"), *self.buttons], layout=box)

    def _mark(self, change) -> None:
        self.buttons[change["old"]].remove_class("dcae-chosen")
        self.buttons[change["new"]].add_class("dcae-chosen")


class Sites(widgets.Box):
    """A picture with a button over each place of its latent, h × w; `chosen()` says which are down."""

    def __init__(self, h: int, w: int, side: int = SIDE + 64):
        self.shape, self.side = (h, w), side
        self.picture = Picture("", side)
        layout = widgets.Layout(width="auto", height="auto")
        self.buttons = [widgets.ToggleButton(layout=layout, tooltip=f"row {k // w}, column {k % w}") for k in range(h * w)]
        for button in self.buttons:
            button.add_class("dcae-site")
        grid = widgets.Layout(grid_template_columns=f"repeat({w}, {side // w}px)", grid_auto_rows=f"{side // h}px", grid_gap="0")
        sites = widgets.GridBox(self.buttons, layout=grid)
        sites.add_class("dcae-sites")
        super().__init__([self.picture.image, sites], layout=widgets.Layout(width=f"{side}px", height=f"{side}px"))
        self.add_class("dcae-board")

    def chosen(self) -> Tensor:
        """bool [h, w]"""
        return torch.tensor([button.value for button in self.buttons]).view(self.shape)
