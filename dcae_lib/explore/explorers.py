"""Explorers of the latents; each answers a slider at once and carries a still figure for pages without a kernel."""

# Made of ipywidgets, not of the pages' own (site/live): those know one network, these take any model of the reader's.
import base64
import html
import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import center_crop

from .. import plots
from ..data import ImageSet, read_picture, to_model
from ..files import resource
from ..model import DCAE
from ..tiles import reconstruct
from . import latents
from .widgets import BOARD, Explorer, Picture, Thumbnails, board, button, decibels, label, png, slider

# Even: with an odd count, the middle level would hold most values and cost fewer bits than the even count below.
LEVELS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
Change = Callable[[int, Tensor], Tensor]  # (index of the image, chosen sites as bool [h, w]) → the changed latent
COMPARED = ("original", "result", "difference")  # the pictures of `_compare`


def figure(draw: Callable[[Any], Figure], control: widgets.ValueWidget) -> Explorer:
    """Show a control above the figure that `draw` makes of its value; papermill can wait forever for `interact`."""
    picture = widgets.Image()

    def show() -> None:
        picture.value = plots.figure_png(draw(control.value))

    return Explorer([control, picture], {"control": control}, {"figure": picture}, draw(control.value), show)


def channels(model: DCAE, images: ImageSet) -> Explorer:
    """Switch channels of the latent off or scale them, and see what each contributes to the picture.

    A channel that is off has its mean over the images; a gain multiplies the distance from that mean. Next to each
    switch are the channel's map and its stamp: the average effect on a picture of one standard deviation at one site.
    """
    x, z = _encode(model, images)
    mean, bounds = z.mean((0, 2, 3)), z.abs().amax((0, 2, 3))
    stamps, costs = latents.effects(model, z[:64])
    stamps = center_crop(stamps / stamps.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12), [16, 16])
    pick, pictures = Thumbnails(x), {name: Picture("", 144) for name in COMPARED}
    gains = [slider("", 1, -2, 2, 0.1, width=216, readout_format=".1f") for _ in costs]
    switches = [widgets.Checkbox(True, description=str(k), indent=False) for k in range(len(costs))]
    maps, effects = ([Picture("", 36) for _ in costs] for _ in range(2))
    cells = []
    for cost, stamp, gain, switch, values, effect in zip(costs, stamps, gains, switches, maps, effects):
        effect.show(stamp)
        scale = widgets.VBox([gain, label(f"<small>without it {cost:.0f} dB</small>")])
        cells.append(widgets.HBox([switch, values.image, effect.image, scale]).add_class("dcae-channel"))

    def draw() -> None:
        factors = torch.tensor([gain.value * switch.value for gain, switch in zip(gains, switches)])
        scaled = latents.scale_channels(z[pick.value], factors, mean)
        _compare(pictures, x[pick.value], _decode(model, scaled), "reconstruction")
        for picture, values, bound in zip(maps, scaled, bounds):
            picture.image.value = png(values, float(bound))

    reset = button("reset", lambda: explorer.set_all(gains=1.0, switches=True))
    off = button("all off", lambda: explorer.set_all(gains=1.0, switches=False))
    parts = {"dcae-channels": cells, "dcae-beside": [*pictures.values()]}
    still = plots.channel_sheet(z[0], bounds, stamps, [f"{k}: {cost:.0f} dB" for k, cost in enumerate(costs)])
    controls = {"image": pick, "gains": gains, "switches": switches}
    both = widgets.Box([widgets.Box(of).add_class(name) for name, of in parts.items()]).add_class("dcae-both")
    explorer = Explorer([[pick, reset, off], both], controls, pictures, still, draw)
    return explorer


def interpolation(model: DCAE, images: ImageSet) -> Explorer:
    """Walk from one picture to another, through the latents and through the pixels."""
    x, z = _encode(model, images)
    first, second = Thumbnails(x, 3, "from"), Thumbnails(x, 7, "to")
    percent = slider("% of the way", 50, 0, 100, 5, kind=widgets.IntSlider)
    play = widgets.Play(value=50, min=0, max=100, step=5, interval=200)
    play.repeat = play._repeat = True  # in ipywidgets 8 and in 7
    widgets.jslink((play, "value"), (percent, "value"))
    through, across = Picture("through the latents"), Picture("")
    strip = Picture("above through the latents, below through the pixels", 640, 160)
    shares = torch.linspace(0, 1, 8).view(-1, 1, 1, 1)

    def walk(shares: Tensor) -> tuple[Tensor, Tensor]:
        a, b, t = first.value, second.value, shares.float()
        return latents.decode_all(model, torch.lerp(z[a], z[b], t)), torch.lerp(x[a], x[b], t)

    def draw() -> None:
        y, pixels = walk(torch.tensor(percent.value / 100).view(1, 1, 1, 1))
        through.show(y[0])
        across.show(pixels[0], f"through the pixels, {decibels(y[0], pixels[0])} between them")
        strip.show(torch.cat([torch.cat([*row], 2) for row in walk(shares)], 1))

    rows = [first, second, [play, percent], [through, across], strip]
    controls = {"from": first, "to": second, "percent": percent}
    pictures = {"latents": through, "pixels": across, "strip": strip}
    still = plots.image_rows(dict(zip(pictures, walk(shares))), [f"{100 * t:.0f} %" for t in shares.flatten()])
    return Explorer(rows, controls, pictures, still, draw)


def directions(model: DCAE, images: ImageSet) -> Explorer:
    """Move along the principal components of the latents, in standard deviations, from the mean or from a picture."""
    x, z = _encode(model, images)
    mean, axes, std = latents.principal_components(z, 8)
    starts, moves = torch.cat([mean[None], z]), axes * std[:, None, None, None]
    pick, picture = Thumbnails(torch.cat([_decode(model, mean)[None], x]), 0, "start"), Picture("")
    steps = [slider(str(k + 1), 0, -3, 3, 0.1, readout_format="+.1f") for k in range(8)]

    def draw() -> None:
        moved = starts[pick.value] + torch.tensordot(moves.new_tensor([step.value for step in steps]), moves, 1)
        picture.show(_decode(model, moved), f"picture {pick.value}, moved" if pick.value else "the mean, moved")

    reset = button("reset", lambda: explorer.set_all(steps=0.0))
    shifts = torch.linspace(-3, 3, 7).view(-1, 1, 1, 1)
    walks = {str(k + 1): latents.decode_all(model, mean + shifts * moves[k]) for k in range(4)}
    still = plots.image_rows(walks, [f"{t:+.0f} σ" for t in shifts.flatten()])
    rows = [pick, [widgets.VBox([picture, reset]), widgets.VBox(steps)]]
    explorer = Explorer(rows, {"start": pick, "steps": steps}, {"picture": picture}, still, draw)
    return explorer


def quantisation(model: DCAE, images: ImageSet) -> Explorer:
    """Round every number of the latent to a few levels; the bits are those of an ideal code for the levels."""
    x, z = _encode(model, images)
    low, high = z.amin((0, 2, 3)), z.amax((0, 2, 3))
    tables = {n: latents.bits_of_levels(latents.levels_of(z, n, low, high)[1], n) for n in LEVELS}
    pick, pictures, spent = Thumbnails(x), {name: Picture("") for name in COMPARED}, label("")
    levels = widgets.SelectionSlider(options=LEVELS, value=16, description="levels", layout={"width": "400px"})

    def rounded(k: int, n: int) -> tuple[Tensor, float]:
        """Return picture k, its latent rounded to n levels, and the bits per pixel."""
        values, index = latents.levels_of(z[k : k + 1], n, low, high)
        bits = tables[n].gather(1, index[0].flatten(1)).sum() / x[k, 0].numel()
        return _decode(model, values[0]), float(bits)

    def draw() -> None:
        y, bits = rounded(pick.value, levels.value)
        _compare(pictures, x[pick.value], y, f"{levels.value} levels")
        spent.value = f"about {bits:.2f} bits per pixel; the picture itself has 24"

    examples = {n: rounded(0, n) for n in (2, 4, 8, 16, 32, 64, 256)}
    titles = [f"{n} levels\n{decibels(y, x[0])}\n{bits:.1f} bpp" for n, (y, bits) in examples.items()]
    still = plots.image_rows({"image 0": torch.stack([y for y, _ in examples.values()])}, titles)
    rows = [pick, levels, spent, [*pictures.values()]]
    return Explorer(rows, {"image": pick, "levels": levels}, pictures, still, draw)


def damage(model: DCAE, images: ImageSet) -> Explorer:
    """Click holes into a latent and add noise to the rest; see how far each change reaches."""
    x, z = _encode(model, images)
    mean, std = z.mean((0, 2, 3))[:, None, None], z.std((0, 2, 3))[:, None, None]
    noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)) * std
    strength, hint = slider("noise, σ", 0, 0, 2, 0.05), "punch holes: click or drag"
    change: Change = lambda k, sites: torch.where(sites, mean, z[k] + strength.value * noise)  # noqa: E731
    return _on_sites(model, x, z, change, hint, strength, {"noise": strength})


def brush(model: DCAE, images: ImageSet) -> Explorer:
    """Paint the latent of another picture into this one; see how far the paint reaches."""
    x, z = _encode(model, images)
    paint, hint = Thumbnails(x, 7, "paint"), "paint: click or drag"
    change: Change = lambda k, sites: torch.where(sites, z[paint.value], z[k])  # noqa: E731
    return _on_sites(model, x, z, change, hint, paint, {"paint": paint})


def _on_sites(model: DCAE, x: Tensor, z: Tensor, change: Change, hint: str, row, controls: dict) -> Explorer:
    """Build `damage` or `brush`: choose sites, and see the picture and, on a log scale, where it changes."""
    pick, result, changes, status = Thumbnails(x), Picture("", BOARD), Picture("", BOARD), label("")
    clickable, sites = board(result.image, *z.shape[2:])
    freeze = widgets.Checkbox(False, indent=False, description="freeze the norms")

    def changed(k: int, frozen: bool) -> tuple[Tensor, Tensor, str]:
        """Return picture k, changed at the chosen sites, where it changes, and how much."""
        moved = change(k, torch.tensor([site.value for site in sites]).view(z.shape[2:]))
        near = latents.reach(model, z[k], (moved != z[k]).any(0))
        with latents.frozen_norms(model.decoder, z[k : k + 1]) if frozen else nullcontext():
            y = _decode(model, moved)
        delta, text = y - _decode(model, z[k]), f"{decibels(y, x[k])} from the original"
        if near.all():
            text += "; from here the convolutions reach the whole picture"
        elif near.any():
            text += f"; outside the line at most {127.5 * delta[:, ~near].abs().max():.1f} of 255 levels"
        return y, plots.log_change(delta, near), text

    def draw() -> None:
        y, where, status.value = changed(pick.value, freeze.value)
        result.show(y)
        changes.show(where)

    clear = button("clear", lambda: explorer.set_all(sites=False))
    examples = zip(*(changed(k, frozen)[:2] for k in range(min(2, len(x))) for frozen in (False, True)))
    columns = dict(zip(("result", "change"), map(torch.stack, examples)))
    still = plots.image_rows(columns, ["norms at work", "norms frozen"] * 2)
    boards = [widgets.VBox([label(hint), clickable]), widgets.VBox([label("change"), changes.image])]
    key = "change, from 0.1 level (dark) to 255 (bright); inside the white line, what the convolutions reach"
    controls = {"image": pick, "sites": sites, "freeze": freeze, **controls}
    rows = [pick, row, [clear, freeze], boards, status, label(key)]
    explorer = Explorer(rows, controls, {"result": result, "change": changes}, still, draw)
    return explorer


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


def _encode(model: DCAE, images: ImageSet, count: int | None = 500) -> tuple[Tensor, Tensor]:
    """Return the first images, or all, and their latents; on the CPU, where one small picture at a time is fastest."""
    x = to_model(images.images[:count])
    return x, latents.encode_all(model, x)


def _decode(model: DCAE, z: Tensor) -> Tensor:
    return latents.decode_all(model, z[None])[0].clamp(-1, 1)


def _compare(pictures: dict[str, Picture], x: Tensor, y: Tensor, title: str) -> None:
    """Show an original x, a result y and four times their difference, [3, H, W] in [-1, 1]: the pictures COMPARED."""
    pictures["original"].show(x, "original")
    pictures["result"].show(y, f"{title}, {decibels(y, x)}")
    pictures["difference"].show(plots.error_maps(y, x), "difference × 4")
