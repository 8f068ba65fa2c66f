"""Explorers of the latents: each is one call in a cell, answers a slider at once, and carries a still figure of itself."""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import latents
from .. import plots
from ..data import CLASSES, ImageSet, read_picture, to_model
from ..metrics import psnr
from ..model import DCAE
from .widgets import Explorer, Picture, Redraw, Sites, Thumbnails, label, png, press, slider
from ..files import resource
from ..tiles import reconstruct

MANY = 500                                                  # images that statistics are taken over
SHOWN = 12                                                  # thumbnails
# Even: an odd count has a level in the middle, where most values are, and would cost less than the even one before.
LEVELS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def figure(draw: Callable[[Any], Figure], control: widgets.ValueWidget) -> Explorer:
    """A control above the figure that `draw` makes of its value.

    ipywidgets' own `interact` puts figures into an Output widget, on which papermill now and then waits forever (nbclient
    issue 312).
    """
    picture, message = widgets.Image(), label("")

    def show() -> None:
        picture.value = plots.figure_png(draw(control.value))

    redraw = Redraw(show, message)
    redraw.watch(control)
    redraw()
    return Explorer([control, picture], {"control": control}, {"figure": picture}, message, draw(control.value))


def channels(model: DCAE, images: ImageSet) -> Explorer:
    """Turn channels of the latent on and off, up and down, and see what each does to the picture.

    Off is the mean over the images; the gain multiplies the distance from it. Beside each switch stand the channel's
    map and its stamp: what one standard deviation more at one place adds to a picture, averaged over images.
    """
    x, z = _latents(model, images)
    mean, bounds = z.mean((0, 2, 3)), z.abs().amax((0, 2, 3))
    stamps, costs = latents.effects(model, z[:64])
    stamps = plots.middle(stamps / stamps.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12), 16)
    pick, message = Thumbnails(x[:SHOWN]), label("")
    original, result, error = Picture("original"), Picture(""), Picture("difference × 4")
    gains, switches, maps, cells = [], [], [], []
    for k, (stamp, cost) in enumerate(zip(stamps, costs)):
        gains.append(slider("", 1, -2, 2, 0.1, width=150, readout_format=".1f"))
        switches.append(widgets.Checkbox(True, description=str(k), indent=False, layout=widgets.Layout(width="48px")))
        maps.append(Picture("", 52))
        effect = Picture("", 52)
        effect.show(stamp)
        head = widgets.HBox([switches[k], maps[k].image, effect.image])
        cells.append(widgets.VBox([head, gains[k], label(f"<small>without it {cost:.0f} dB</small>")]))

    def draw() -> None:
        k = pick.choice.value
        gain = torch.tensor([g.value if s.value else 0.0 for g, s in zip(gains, switches)])
        scaled = latents.scale_channels(z[k], gain, mean)
        y = _decode(model, scaled)
        original.show(x[k])
        result.show(y, f"reconstruction, {_psnr(y, x[k])}")
        error.show(plots.error_maps(y, x[k]))
        for picture, values, bound in zip(maps, scaled, bounds):
            picture.image.value = png(values, float(bound))

    def set_all(on: bool) -> None:
        with redraw.once():
            for gain, switch in zip(gains, switches):
                gain.value, switch.value = 1.0, on

    redraw = Redraw(draw, message)
    redraw.watch(pick.choice, *gains, *switches)
    buttons = widgets.HBox([press("reset", lambda _: set_all(True)), press("all off", lambda _: set_all(False))])
    draw()
    grid = widgets.GridBox(cells, layout=widgets.Layout(grid_template_columns="repeat(4, 186px)", grid_gap="10px 4px"))
    still = plots.channel_sheet(z[0], bounds, stamps, [f"{k}: {cost:.0f} dB" for k, cost in enumerate(costs)])
    return Explorer(
        [pick, widgets.HBox([original, result, error]), buttons, grid],
        {"image": pick.choice, "gains": gains, "switches": switches},
        {"original": original, "result": result, "difference": error},
        message,
        still,
    )


def interpolation(model: DCAE, images: ImageSet) -> Explorer:
    """Walk from one picture to another, through the latents and through the pixels."""
    x, z = _latents(model, images)
    first, second, message = Thumbnails(x[:SHOWN], 3, "from"), Thumbnails(x[:SHOWN], 7, "to"), label("")
    percent = slider("% of the way", 50, 0, 100, 5, width=440, kind=widgets.IntSlider)
    play = widgets.Play(value=50, min=0, max=100, step=5, interval=200, repeat=True)
    widgets.jslink((play, "value"), (percent, "value"))
    through, across = Picture("through the latents"), Picture("")
    strip = Picture("above through the latents, below through the pixels", 640, 160)
    shares = torch.linspace(0, 1, 8).view(-1, 1, 1, 1)

    def walk(a: int, b: int) -> tuple[Tensor, Tensor]:
        return latents.decode_all(model, torch.lerp(z[a], z[b], shares)), torch.lerp(x[a], x[b], shares)

    def draw() -> None:
        a, b, share = first.choice.value, second.choice.value, percent.value / 100
        y, pixels = _decode(model, torch.lerp(z[a], z[b], share)), torch.lerp(x[a], x[b], share)
        through.show(y)
        across.show(pixels, f"through the pixels, {_psnr(y, pixels)} between them")

    def draw_strip() -> None:
        above, below = walk(first.choice.value, second.choice.value)
        strip.show(torch.cat([torch.cat([*above], 2), torch.cat([*below], 2)], 1))
        draw()

    Redraw(draw, message).watch(percent)
    Redraw(draw_strip, message).watch(first.choice, second.choice)
    draw_strip()
    above, below = walk(first.choice.value, second.choice.value)
    still = plots.image_rows({"latents": above, "pixels": below}, [f"{100 * t:.0f} %" for t in shares.flatten()])
    return Explorer(
        [_row("from", first), _row("to", second), widgets.HBox([play, percent]), widgets.HBox([through, across]), strip],
        {"from": first.choice, "to": second.choice, "percent": percent},
        {"latents": through, "pixels": across, "strip": strip},
        message,
        still,
    )


def directions(model: DCAE, images: ImageSet, count: int = 8) -> Explorer:
    """Move along the principal components of the latents, in standard deviations, from the mean or from a picture."""
    x, z = _latents(model, images)
    mean, axes, std = latents.principal_components(z, count)
    starts = torch.cat([mean[None], z[:SHOWN - 1]])
    pick = Thumbnails(torch.cat([_decode(model, mean)[None], x[:SHOWN - 1]]), 0, "start")
    message, picture = label(""), Picture("")
    steps = [slider(str(k + 1), 0, -3, 3, 0.1, readout_format="+.1f") for k in range(count)]

    def draw() -> None:
        moves = torch.tensor([step.value for step in steps])
        title = f"picture {pick.choice.value}, moved" if pick.choice.value else "the mean, moved"
        picture.show(_decode(model, latents.along(starts[pick.choice.value], axes, std, moves)), title)

    def reset(_) -> None:
        with redraw.once():
            for step in steps:
                step.value = 0.0

    redraw = Redraw(draw, message)
    redraw.watch(pick.choice, *steps)
    draw()
    shifts = torch.linspace(-3, 3, 7)
    shown = [
        latents.decode_all(model, torch.stack([latents.along(mean, axes, std, t * one) for t in shifts]))
        for one in torch.eye(count)[:4]
    ]
    still = plots.image_rows({str(k + 1): row for k, row in enumerate(shown)}, [f"{t:+.0f} σ" for t in shifts])
    return Explorer(
        [pick, widgets.HBox([widgets.VBox([picture, press("reset", reset)]), widgets.VBox(steps)])],
        {"start": pick.choice, "steps": steps},
        {"picture": picture},
        message,
        still,
    )


def quantisation(model: DCAE, images: ImageSet) -> Explorer:
    """Round every number of the latent to a few levels; the bits are what an ideal code for the levels would spend."""
    x, z = _latents(model, images)
    low, high = z.amin((0, 2, 3)), z.amax((0, 2, 3))
    tables = {n: latents.bits_of_levels(latents.levels_of(z, n, low, high)[1], n) for n in LEVELS}
    pick, message = Thumbnails(x[:SHOWN]), label("")
    levels = widgets.SelectionSlider(options=LEVELS, value=16, description="levels", layout=widgets.Layout(width="400px"))
    original, result, error = Picture("original"), Picture(""), Picture("difference × 4")
    spent = label("")

    def rounded(k: int, n: int) -> tuple[Tensor, float]:
        values, index = latents.levels_of(z[k:k + 1], n, low, high)
        bits = tables[n].gather(1, index[0].flatten(1)).sum() / x[k, 0].numel()
        return _decode(model, values[0]), float(bits)

    def draw() -> None:
        k = pick.choice.value
        y, bits = rounded(k, levels.value)
        original.show(x[k])
        result.show(y, f"{levels.value} levels, {_psnr(y, x[k])}")
        error.show(plots.error_maps(y, x[k]))
        spent.value = f"about {bits:.2f} bits per pixel; the picture itself has 24"

    Redraw(draw, message).watch(pick.choice, levels)
    draw()
    some = (2, 4, 8, 16, 32, 64, 256)
    shown = [rounded(0, n) for n in some]
    titles = [f"{n} levels\n{_psnr(y, x[0])}\n{bits:.1f} bpp" for n, (y, bits) in zip(some, shown)]
    still = plots.image_rows({"image 0": torch.stack([y for y, _ in shown])}, titles)
    return Explorer(
        [pick, levels, spent, widgets.HBox([original, result, error])],
        {"image": pick.choice, "levels": levels},
        {"original": original, "result": result, "difference": error},
        message,
        still,
    )


def damage(model: DCAE, images: ImageSet) -> Explorer:
    """Click holes into a latent and add noise to the rest; the change on a log scale, the reach of what moved outlined."""
    x, z = _latents(model, images)
    mean, std = z.mean((0, 2, 3))[:, None, None], z.std((0, 2, 3))[:, None, None]
    noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)) * std
    strength = slider("noise, σ", 0, 0, 2, 0.05)

    def punch(k: int, sites: Tensor) -> Tensor:
        return torch.where(sites, mean, z[k] + strength.value * noise)

    return _on_sites(model, x, z, punch, "punch holes: click the picture", strength, {"noise": strength})


def brush(model: DCAE, images: ImageSet) -> Explorer:
    """Paint the latents of another picture into this one's; the change on a log scale, the reach of the paint outlined."""
    x, z = _latents(model, images)
    paint = Thumbnails(x[:SHOWN], 7, "paint")

    def dab(k: int, sites: Tensor) -> Tensor:
        return torch.where(sites, z[paint.choice.value], z[k])

    return _on_sites(model, x, z, dab, "paint: click the picture", _row("paint with", paint), {"paint": paint.choice})


def _on_sites(
    model: DCAE, x: Tensor, z: Tensor, change: Callable[[int, Tensor], Tensor], hint: str, row: widgets.Widget, controls: dict
) -> Explorer:
    """What `damage` and `brush` share: sites to click, and where the picture changes. change: (image, sites) → latent."""
    pick, board, message = Thumbnails(x[:SHOWN]), Sites(*z.shape[2:]), label("")
    freeze = widgets.Checkbox(False, indent=False, description="freeze the norms")
    changes, said = Picture("", board.side), label("")

    def changed(k: int, sites: Tensor, frozen: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The new picture, what it differs by from the old one, and the reach of the sites that moved."""
        moved = change(k, sites)
        near = latents.reach(model, z[k], (moved != z[k]).any(0))
        if frozen:
            with latents.frozen_norms(model.decoder, z[k:k + 1]):
                y = _decode(model, moved)
        else:
            y = _decode(model, moved)
        return y, y - _decode(model, z[k]), near

    def draw() -> None:
        k, sites = pick.choice.value, board.chosen()
        y, delta, near = changed(k, sites, freeze.value)
        board.picture.show(y)
        changes.show(plots.log_change(delta, near))
        said.value = f"{_psnr(y, x[k])} from the original"
        if near.all():
            said.value += "; from here the convolutions reach the whole picture"
        elif near.any():
            said.value += f"; outside the line at most {127.5 * delta[:, ~near].abs().max():.1f} of 255 levels"

    def clear(_) -> None:
        with redraw.once():
            for button in board.buttons:
                button.value = False

    redraw = Redraw(draw, message)
    corner = torch.zeros(z.shape[2:], dtype=torch.bool)
    corner[:2, :2] = True
    for button, inside in zip(board.buttons, corner.flatten()):
        button.value = bool(inside)                         # so that there is something to see
    redraw.watch(pick.choice, freeze, *board.buttons, *controls.values())
    draw()
    shown = [changed(k, corner, frozen) for k in range(min(2, len(x))) for frozen in (False, True)]
    pictures = {
        "result": torch.stack([y for y, _, _ in shown]),
        "change": torch.stack([plots.log_change(delta, near) for _, delta, near in shown]),
    }
    still = plots.image_rows(pictures, ["norms at work", "norms frozen"] * 2)
    key = label("change, from 0.1 level (dark) to 255 (bright); inside the white line, what the convolutions reach")
    boards = widgets.HBox([widgets.VBox([label(hint), board]), widgets.VBox([label("change"), changes.image])])
    return Explorer(
        [pick, row, widgets.HBox([press("clear", clear), freeze]), boards, said, key],
        {"image": pick.choice, "sites": board.buttons, "freeze": freeze, **controls},
        {"result": board.picture, "change": changes},
        message,
        still,
    )


def classes(model: DCAE, images: ImageSet, names: tuple[str, ...] = CLASSES) -> Explorer:
    """The mean latent of each class, decoded, beside the mean of its pixels. ValueError for images without labels."""
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels; means of classes need them")
    x, z = _latents(model, images, many=None)
    decoded = latents.decode_all(model, latents.class_means(z, images.labels)).clamp(-1, 1)
    pixels = latents.class_means(x, images.labels)
    message, left, right = label(""), Picture("mean latent, decoded"), Picture("")
    shown = [names[k] for k in images.labels.unique()]
    choice = widgets.ToggleButtons(options=[(name, k) for k, name in enumerate(shown)], style={"button_width": "auto"})

    def draw() -> None:
        left.show(decoded[choice.value])
        right.show(pixels[choice.value], f"mean of the pixels, {_psnr(decoded[choice.value], pixels[choice.value])} between them")

    Redraw(draw, message).watch(choice)
    draw()
    still = plots.image_rows({"latents": decoded, "pixels": pixels}, shown)
    return Explorer(
        [choice, widgets.HBox([left, right])], {"class": choice}, {"latents": left, "pixels": right}, message, still
    )


def upload(model: DCAE, photo: str | Path | None = None) -> Explorer:
    """Choose a picture of yours: it goes through the network in overlapping tiles; at first, a photo of the course."""
    file = widgets.FileUpload(accept=".png,.jpg,.jpeg,.webp", description="your picture")
    bar = widgets.FloatProgress(0, min=0, max=1, layout=widgets.Layout(width="200px", visibility="hidden"))
    view = widgets.ToggleButtons(options=["original", "reconstruction", "error × 8"], value="reconstruction")
    message, said, save = label(""), label(""), widgets.HTML()
    pictures = {name: widgets.Image(layout=widgets.Layout(object_fit="none")) for name in view.options}
    scroll = widgets.Box(list(pictures.values()))
    scroll.add_class("dcae-scroll")
    # Jupyter's server closes the connection on messages larger than that, before anything here sees them.
    hint = label("<small>PNG, JPEG or WebP of up to 10 MB; for a larger one, upload(model, photo=path)</small>")

    def show(source, name: str) -> dict[str, Tensor]:
        x = to_model(read_picture(source, name))
        bar.value, bar.layout.visibility = 0, "visible"
        try:
            y = reconstruct(model, x, after_row=lambda share: setattr(bar, "value", share))
        finally:
            bar.layout.visibility = "hidden"
        shown = dict(zip(view.options, (x, y, plots.error_maps(y, x, gain=8))))
        for key, picture in shown.items():
            pictures[key].value = png(picture)
        said.value = f"{html.escape(name)}: {x.shape[2]}×{x.shape[1]} pixels, {_psnr(y, x)}"
        link, name = base64.b64encode(pictures["reconstruction"].value).decode(), html.escape(Path(name).stem)
        save.value = f'<a class="jupyter-button" download="{name}-dcae.png" href="data:image/png;base64,{link}">save the result</a>'
        return shown

    def received() -> None:
        if file.value:
            show(io.BytesIO(file.value[0]["content"]), file.value[0]["name"])

    def flip(*_) -> None:
        for name, picture in pictures.items():
            picture.layout.display = None if name == view.value else "none"

    photo = Path(photo) if photo else resource("photos") / "cat.webp"
    shown = show(photo, photo.name)
    flip()
    Redraw(received, message).watch(file)
    view.observe(flip, "value")
    still = plots.image_rows({"middle": torch.stack([plots.middle(picture, 96) for picture in shown.values()])}, list(shown))
    return Explorer(
        [widgets.HBox([file, save, bar]), said, view, scroll, hint], {"file": file, "view": view}, pictures, message, still
    )


def _row(name: str, thumbnails: Thumbnails) -> widgets.HBox:
    return widgets.HBox([label(name), thumbnails], layout=widgets.Layout(align_items="center"))


def _latents(model: DCAE, images: ImageSet, many: int | None = MANY) -> tuple[Tensor, Tensor]:
    """The first images, or all, and their latents; on the CPU, where single small pictures are fastest."""
    if next(model.parameters()).device.type != "cpu":
        raise ValueError("the explorers work on the CPU: explore.…(model.cpu(), images)")
    x = to_model(images.images[:many])
    return x, latents.encode_all(model, x)


@torch.no_grad()
def _decode(model: DCAE, z: Tensor) -> Tensor:
    return model.decode(z[None])[0].clamp(-1, 1)


def _psnr(y: Tensor, x: Tensor) -> str:
    return f"{psnr(y[None], x[None]).item():.1f} dB"
