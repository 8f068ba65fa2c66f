"""Parts of the explorers: pictures, thumbnails, a board of sites, and explorers that report their errors."""

import base64
import html
import traceback
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
from matplotlib.figure import Figure
from torch import Tensor
from traitlets import Int

from .. import plots
from ..data import DataError, as_png
from ..metrics import psnr

SIDE, BOARD = 192, 256  # of a picture and of a board on the screen, in CSS pixels
CSS, PAINT = (Path(__file__).with_name(name).read_text() for name in ("style.css", "paint.js"))
STYLE = f'<style>\n{CSS}</style><style onload="{html.escape(PAINT)}">/**/</style>'  # a <script> would not run


class Explorer(widgets.VBox):
    """Rows of widgets that redraw when a control moves; pages without a kernel (GitHub, PDF) show a still figure.

    rows: widgets, or lists of widgets that stand side by side.
    controls: widgets, or lists of widgets, by name; `explorer.controls["levels"].value = 4` acts like a user.
    pictures: what `draw` shows, by name. message: the line at the bottom that reports an error.
    """

    def __init__(self, rows: list, controls: dict, pictures: dict, still: Figure, draw: Callable[[], None]):
        self.controls, self.pictures, self.message = controls, pictures, label("")
        self.draw, self.paused = draw, False
        self.still = base64.b64encode(plots.figure_png(still)).decode()
        centred = widgets.Layout(align_items="center", flex_flow="row wrap")
        boxes = [widgets.HBox(row, layout=centred) if isinstance(row, list) else row for row in rows]
        super().__init__([widgets.HTML(STYLE), *boxes, self.message])
        draw()
        for control in controls.values():
            for widget in control if isinstance(control, list) else [control]:
                widget.observe(self.redraw, "value")

    def redraw(self, *_) -> None:
        """Draw, and put what that raises into `message`; by itself, ipywidgets would only log it."""
        if self.paused:
            return
        try:
            self.draw()
            self.message.value = ""
        except Exception as error:  # a DataError is caused by the user: one line
            text = str(error) if isinstance(error, DataError) else traceback.format_exc()
            self.message.value = f'<pre style="color:{plots.RED}; white-space: pre-wrap">{html.escape(text)}</pre>'

    def set_all(self, **values) -> None:
        """Set all controls of each list, by name, to its value, then draw once."""
        self.paused = True
        for name, value in values.items():
            for control in self.controls[name]:
                control.value = value
        self.paused = False
        self.redraw()

    _ipython_display_ = None  # of ipywidgets 7: it would take precedence, and shows no still figure

    def _repr_mimebundle_(self, **kwargs):
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        bundle = {"text/plain": repr(self)[:110] + "…", "image/png": self.still}
        return bundle | {"application/vnd.jupyter.widget-view+json": view}


class Picture(widgets.VBox):
    """A picture with a title above it, in CSS pixels; the pixels of small pictures stay visible."""

    def __init__(self, title: str, width: int = SIDE, height: int | None = None):
        layout = widgets.Layout(width=f"{width}px", height=f"{height or width}px")
        self.title, self.image = label(title), widgets.Image(layout=layout).add_class("dcae-pixels")
        super().__init__([self.title, self.image], layout=widgets.Layout(margin="0 8px 0 0"))
        self.add_class("dcae-picture")

    def show(self, x: Tensor, title: str | None = None) -> None:
        """Show x, as `png` takes it; None keeps the title."""
        self.image.value = png(x)
        self.title.value = title or self.title.value


class Thumbnails(widgets.HBox):
    """A name and up to 12 pictures to click; `value`, which can be observed, is the index of the chosen one."""

    value = Int(-1)  # until one is chosen

    def __init__(self, images: Tensor, chosen: int = 0, name: str = "image"):
        images, kind = images[:12], f"dcae-{name}-{id(self)}"
        data = [base64.b64encode(png(x)).decode() for x in images]
        rules = [f".{kind}-{k} {{ background-image: url(data:image/png;base64,{x}) }}" for k, x in enumerate(data)]
        layout = widgets.Layout(width="40px", height="40px")
        self.buttons = [widgets.Button(layout=layout, tooltip=f"{name} {k}") for k in range(len(images))]
        for k, button in enumerate(self.buttons):
            button.add_class("dcae-thumbnail").add_class(f"{kind}-{k}")
            button.on_click(lambda _, k=k: self.set_trait("value", k))
        style, title = widgets.HTML(f"<style>{' '.join(rules)}</style>"), label(name).add_class("dcae-name")
        super().__init__([style, title, *self.buttons], layout={"flex_flow": "row wrap", "align_items": "center"})
        self.observe(self._mark, "value")
        self.value = min(chosen, len(images) - 1)

    def _mark(self, change) -> None:
        self.buttons[change["old"]].remove_class("dcae-chosen")
        self.buttons[change["new"]].add_class("dcae-chosen")


def board(image: widgets.Image, h: int, w: int) -> tuple[widgets.Box, list[widgets.ToggleButton]]:
    """Lay a toggle button over each site of the latent, h × w, of a picture BOARD pixels wide; four are pressed."""
    places, layout = [divmod(k, w) for k in range(h * w)], widgets.Layout(width="auto", height="auto")
    buttons = [widgets.ToggleButton(i < 2 and j < 2, layout=layout, tooltip=f"row {i}, column {j}") for i, j in places]
    for button in buttons:
        button.add_class("dcae-site")
    columns, rows = f"repeat({w}, {BOARD // w}px)", f"{BOARD // h}px"
    grid = widgets.Layout(grid_template_columns=columns, grid_auto_rows=rows, grid_gap="0")
    sites = widgets.GridBox(buttons, layout=grid).add_class("dcae-sites")
    return widgets.Box([image, sites], layout=image.layout).add_class("dcae-board"), buttons


def png(x: Tensor, bound: float | None = None) -> bytes:
    """Return a picture, as `plots.show_image` takes it, as a PNG file."""
    return as_png(plots.in_colour(x, bound), compress_level=1)


def decibels(y: Tensor, x: Tensor) -> str:
    """Return the PSNR between two pictures [3, H, W] in [-1, 1], as text."""
    return f"{psnr(y[None], x[None]).item():.1f} dB"


def label(text: str) -> widgets.HTML:
    """Return text in the page's own colour, light or dark."""
    return widgets.HTML(text).add_class("dcae-label")


def slider(name: str, value, low, high, step, width: int = 440, kind=widgets.FloatSlider, **options) -> widgets.Widget:
    """Return a slider from low to high, `width` CSS pixels wide with its name and value."""
    style, layout = {"description_width": "auto" if name else "0"}, widgets.Layout(width=f"{width}px", max_width="98%")
    return kind(value, min=low, max=high, step=step, description=name, layout=layout, style=style, **options)


def button(name: str, callback: Callable[[], None]) -> widgets.Button:
    """Return a button that runs a callback when it is clicked."""
    button = widgets.Button(description=name, layout=widgets.Layout(width="auto"))
    button.on_click(lambda _: callback())
    return button
