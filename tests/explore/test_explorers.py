"""The explorers: each control draws what the tensor functions say, failures are told, and any file can be uploaded."""

import base64
import html
import io
import re
import statistics
import struct
import time
import warnings
import zlib
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features

from dcae_lib import DCAE, ImageSet, explore, latents, load_images, panels, plots, to_model, to_uint8
from dcae_lib.data import DataError, read_picture
from dcae_lib.metrics import psnr
from dcae_lib.files import resource
from dcae_lib.tiles import reconstruct

NAMES = ["channels", "interpolation", "directions", "quantisation", "damage", "brush", "classes", "upload"]


class Course:
    """The model, its latents, and an explorer of each kind, built when it is first asked for."""

    def __init__(self):
        self.model, self.images, self.built, self.stills = DCAE.from_pretrained(), load_images().test, {}, {}
        self.x = to_model(self.images.images)
        self.z = latents.encode_all(self.model, self.x)

    def __getitem__(self, name):
        if name not in self.built:
            with plt.rc_context(), pytest.MonkeyPatch.context() as patch:
                for kind in ("image_rows", "channel_sheet"):
                    patch.setattr(plots, kind, self.kept(name, getattr(plots, kind)))
                plots.use_style()
                data = () if name == "upload" else (self.images,)
                self.built[name] = getattr(explore, name)(self.model, *data)
        return self.built[name]

    def kept(self, name, draw):
        def wrapped(*arguments):
            self.stills[name] = arguments
            return draw(*arguments)

        return wrapped

    @torch.no_grad()
    def decode(self, z):
        return self.model.decode(z[None])[0].clamp(-1, 1)


@pytest.fixture(scope="module")
def course():
    return Course()


def every_control(explorer):
    for control in explorer.controls.values():
        yield from control if isinstance(control, list) else [control]


@pytest.fixture
def explorer(request, course):
    """One of the course's, by name; afterwards its controls stand where they stood."""
    explorer = course[request.param]
    values = [control.value for control in every_control(explorer)]
    yield explorer
    for control, value in zip(every_control(explorer), values):
        if not isinstance(control, widgets.FileUpload):
            control.value = value
    assert explorer.message.value == ""


def on(*names):
    return pytest.mark.parametrize("explorer", names, indirect=True)


def image_of(picture):
    return picture.image if isinstance(picture, panels.Picture) else picture


def shown(explorer):
    """The bytes of each picture."""
    return {name: image_of(picture).value for name, picture in explorer.pictures.items()}


def pixels(data):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def assert_shows(picture, x):
    """To one level: a batch of another size rounds otherwise."""
    assert (pixels(image_of(picture).value).int() - to_uint8(x).int()).abs().max() <= 1


def inside(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def html_of(explorer):
    return [widget.value for widget in inside(explorer) if isinstance(widget, widgets.HTML)]


def button(explorer, name):
    return next(w for w in inside(explorer) if isinstance(w, widgets.Button) and w.description == name)


def decibels(y, x):
    return f"{psnr(y[None], x[None]).item():.1f} dB"


# ---- all of them


@pytest.mark.parametrize("name", NAMES)
def test_an_explorer_is_a_widget_where_a_kernel_is_and_a_small_picture_elsewhere(course, name):
    bundle = course[name]._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == course[name].model_id
    still = base64.b64decode(bundle["image/png"])
    image = Image.open(io.BytesIO(still))
    image.load()
    assert image.format == "PNG" and image.width == 800 and len(still) < 110_000
    assert len(np.unique(np.array(image).reshape(-1, 4), axis=0)) > 100
    assert course[name].message.value == "" and not plt.get_fignums()


MOVES = [
    ("channels", "image", 5, "original result difference"),
    ("channels", "gains", -1.5, "result difference"),
    ("channels", "switches", False, "result difference"),
    ("interpolation", "from", 5, "latents pixels strip"),
    ("interpolation", "to", 5, "latents pixels strip"),
    ("interpolation", "percent", 80, "latents pixels"),
    ("directions", "start", 4, "picture"),
    ("directions", "steps", 1.5, "picture"),
    ("quantisation", "image", 5, "original result difference"),
    ("quantisation", "levels", 4, "result difference"),
    ("damage", "image", 5, "result change"),
    ("damage", "sites", None, "result change"),
    ("damage", "freeze", True, "result change"),
    ("damage", "noise", 0.5, "result change"),
    ("brush", "image", 5, "result change"),
    ("brush", "sites", None, "result change"),
    ("brush", "freeze", True, "result change"),
    ("brush", "paint", 5, "result change"),
    ("classes", "class", 3, "latents pixels"),
]


@pytest.mark.parametrize("explorer, control, value, changed", MOVES, indirect=["explorer"])
def test_each_control_changes_the_pictures_that_depend_on_it_and_no_other_and_moves_back(explorer, control, value, changed):
    controls, start = explorer.controls[control], shown(explorer)
    for control in controls[::9 if value is None else 1] if isinstance(controls, list) else [controls]:
        before = control.value
        control.value = not before if value is None else value
        assert {name for name, data in shown(explorer).items() if data != start[name]} == {*changed.split()}
        assert explorer.message.value == ""
        control.value = before
        assert shown(explorer) == start


@on(*NAMES)
def test_what_fails_in_a_callback_is_told_below_and_the_pictures_stay(explorer, course, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("<b>broken</b>")

    before = shown(explorer)
    with monkeypatch.context() as patch:
        patch.setattr(explore, "_decode", broken)
        patch.setattr(explore, "reconstruct", broken)
        patch.setattr(panels.Picture, "show", broken)
        control = next(every_control(explorer))
        if isinstance(control, widgets.FileUpload):
            send(explorer, encoded(GRADIENT, "PNG"))
        else:
            control.value = next(k for k in (1, 2) if k != control.value)
    assert shown(explorer) == before
    message = explorer.message.value
    assert "Traceback (most recent call last)" in message and "RuntimeError: &lt;b&gt;broken&lt;/b&gt;" in message
    assert "<b>" not in message
    if isinstance(control, widgets.FileUpload):
        send(explorer, encoded(GRADIENT, "PNG"), "good.png")


# ---- what each one draws


@on("channels")
@pytest.mark.parametrize("k", [0, 5])
def test_all_channels_on_are_the_plain_reconstruction(explorer, course, k):
    explorer.controls["image"].value = k
    x = course.x[k]
    y = course.model(x[None])[0].detach().clamp(-1, 1)
    assert_shows(explorer.pictures["original"], x)
    assert_shows(explorer.pictures["result"], y)
    assert_shows(explorer.pictures["difference"], (y - x).abs() * 4 - 1)
    assert explorer.pictures["result"].title.value == f"reconstruction, {decibels(y, x)}"


@on("channels")
def test_a_gain_or_a_switch_moves_its_own_channel_about_the_mean_of_500_images(explorer, course):
    mean = course.z.mean((0, 2, 3))
    for k in range(16):
        z = course.z[0].clone()
        explorer.controls["gains"][k].value = -1.5
        z[k] = mean[k] - 1.5 * (z[k] - mean[k])
        assert_shows(explorer.pictures["result"], course.decode(z))
        explorer.controls["switches"][k].value = False
        z[k] = mean[k]
        assert_shows(explorer.pictures["result"], course.decode(z))
        explorer.controls["gains"][k].value, explorer.controls["switches"][k].value = 1, True


@on("channels")
def test_all_off_draws_once_and_leaves_the_mean_and_reset_brings_the_first_picture_back(explorer, course, monkeypatch):
    start, drawn, decode = shown(explorer), [], explore._decode
    monkeypatch.setattr(explore, "_decode", lambda *arguments: drawn.append(1) or decode(*arguments))
    explorer.controls["gains"][3].value = 2
    button(explorer, "all off").click()
    assert len(drawn) == 2 and not any(switch.value for switch in explorer.controls["switches"])
    assert_shows(explorer.pictures["result"], course.decode(course.z.mean((0, 2, 3))[:, None, None].expand(16, 8, 8)))
    button(explorer, "reset").click()
    assert len(drawn) == 3 and shown(explorer) == start
    assert all(g.value == 1 and s.value for g, s in zip(explorer.controls["gains"], explorer.controls["switches"]))


@on("channels")
def test_a_slider_of_the_channels_moves_the_picture_in_300_ms(explorer):
    taken = []
    for k in range(20):
        start = time.perf_counter()
        explorer.controls["gains"][k % 16].value = -1 + k / 20
        taken.append(time.perf_counter() - start)
    assert statistics.median(taken) < 0.3


@on("interpolation")
def test_a_walk_begins_at_one_picture_and_ends_at_the_other(explorer, course):
    controls, pictures = explorer.controls, explorer.pictures
    controls["from"].value, controls["to"].value = 2, 9
    for percent in (0, 25, 100):
        controls["percent"].value = percent
        y, x = (v[2] + percent / 100 * (v[9] - v[2]) for v in (course.z, course.x))
        assert_shows(pictures["latents"], course.decode(y))
        assert_shows(pictures["pixels"], x)
        assert pictures["pixels"].title.value == f"through the pixels, {decibels(course.decode(y), x)} between them"
    strip = [course.decode(course.z[2]), course.decode(course.z[9]), course.x[2], course.x[9]]
    found = pixels(pictures["strip"].image.value)
    corners = torch.cat([torch.cat([found[:, r:r + 32, :32], found[:, r:r + 32, -32:]], 2) for r in (0, 32)], 1)
    expected = torch.cat([torch.cat(strip[:2], 2), torch.cat(strip[2:], 2)], 1)
    assert found.shape == (3, 64, 256) and (corners.int() - to_uint8(expected).int()).abs().max() <= 1


@on("directions")
def test_steps_go_from_the_start_along_the_principal_components_and_reset_takes_them_back(explorer, course):
    mean, axes, std = latents.principal_components(course.z, 8)
    start = shown(explorer)
    assert_shows(explorer.pictures["picture"], course.decode(mean))
    explorer.controls["steps"][0].value, explorer.controls["steps"][7].value = 2, -3
    assert_shows(explorer.pictures["picture"], course.decode(mean + 2 * std[0] * axes[0] - 3 * std[7] * axes[7]))
    explorer.controls["start"].value = 3                    # the mean comes first
    assert_shows(explorer.pictures["picture"], course.decode(course.z[2] + 2 * std[0] * axes[0] - 3 * std[7] * axes[7]))
    explorer.controls["start"].value = 0
    button(explorer, "reset").click()
    assert shown(explorer) == start


@on("quantisation")
@pytest.mark.parametrize("levels", [2, 8, 256])
def test_levels_and_bits_are_those_of_a_histogram_over_the_images(explorer, course, levels):
    explorer.controls["image"].value, explorer.controls["levels"].value = 5, levels
    rounded, bits = course.z[5].clone(), 0.0
    for k, values in enumerate(course.z.transpose(0, 1).double().numpy()):
        grid = np.linspace(values.min(), values.max(), levels)
        index = np.abs(values[..., None] - grid).argmin(-1)
        rounded[k] = torch.from_numpy(grid[index[5]])
        bits -= np.log2(np.bincount(index.flatten())[index[5]] / index.size).sum()
    y, x = course.decode(rounded), course.x[5]
    assert_shows(explorer.pictures["result"], y)
    assert explorer.pictures["result"].title.value == f"{levels} levels, {decibels(y, x)}"
    said = next(float(found[1]) for text in html_of(explorer) if (found := re.search(r"about ([\d.]+) bits per pixel", text)))
    assert said == pytest.approx(bits / 1024, abs=0.03)


def test_the_still_of_the_quantisation_names_the_psnr_of_each_picture(course):
    _ = course["quantisation"]
    rows, titles = course.stills["quantisation"]
    assert [title.split("\n")[1] for title in titles] == [decibels(y, course.x[0]) for y in rows["image 0"]]


WHITE = torch.tensor([255, 255, 255]).view(3, 1, 1)


@on("damage", "brush")
def test_with_frozen_norms_nothing_changes_outside_the_line(explorer, course):
    def outside():
        return next(float(text.split("at most ")[1].split()[0]) for text in html_of(explorer) if "outside the line" in text)

    assert outside() > 0                                    # one corner is chosen at first
    explorer.controls["freeze"].value = True
    assert outside() == 0
    change = pixels(explorer.pictures["change"].image.value)
    dark = torch.tensor(plt.get_cmap("magma")(0.0, bytes=True)[:3]).view(3, 1, 1)
    assert change.shape == (3, 256, 256)
    assert ((change == dark) | (change == WHITE)).all(0)[24 * 8:].all()
    assert (change == WHITE).all(0).any() and (change != dark).any(0)[:32, :32].float().mean() > 0.9


@on("damage")
def test_a_hole_is_the_mean_of_each_channel_and_clear_fills_it(explorer, course):
    explorer.controls["image"].value = 4
    button(explorer, "clear").click()
    explorer.controls["sites"][8 * 5 + 2].value = True
    z = course.z[4].clone()
    z[:, 5, 2] = course.z.mean((0, 2, 3))
    assert_shows(explorer.pictures["result"], course.decode(z))
    assert f"{decibels(course.decode(z), course.x[4])} from the original" in " ".join(html_of(explorer))
    button(explorer, "clear").click()
    assert_shows(explorer.pictures["result"], course.decode(course.z[4]))
    assert not any(site.value for site in explorer.controls["sites"])
    assert not any("outside the line" in text for text in html_of(explorer))


@on("damage")
def test_noise_moves_every_site_so_nothing_is_said_to_lie_outside_the_line(explorer, course):
    controls = explorer.controls
    controls["image"].value, controls["noise"].value = 4, 0.5
    assert any("reach the whole picture" in text for text in html_of(explorer))
    holes = torch.tensor([site.value for site in controls["sites"]]).view(8, 8)
    noise = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0)) * course.z.std((0, 2, 3))[:, None, None]
    z = torch.where(holes, course.z.mean((0, 2, 3))[:, None, None], course.z[4] + 0.5 * noise)
    assert_shows(explorer.pictures["result"], course.decode(z))


@on("brush")
def test_a_brush_paints_the_latent_of_the_other_picture(explorer, course):
    explorer.controls["paint"].value, explorer.controls["image"].value = 3, 4
    explorer.controls["sites"][8 * 5 + 2].value = True      # beside the corner that is painted at first
    z = course.z[4].clone()
    z[:, 5, 2], z[:, :2, :2] = course.z[3, :, 5, 2], course.z[3, :, :2, :2]
    assert_shows(explorer.pictures["result"], course.decode(z))


@on("classes")
def test_a_class_is_the_picture_of_its_mean_latent_beside_the_mean_of_its_pixels(explorer, course):
    explorer.controls["class"].value = 6
    y, x = course.decode(course.z[6::10].mean(0)), course.x[6::10].mean(0)
    assert_shows(explorer.pictures["latents"], y)
    assert_shows(explorer.pictures["pixels"], x)
    assert explorer.pictures["pixels"].title.value == f"mean of the pixels, {decibels(y, x)} between them"


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", ["channels", "interpolation", "directions", "quantisation", "damage", "brush"])
def test_a_few_images_are_enough(course, name, count):
    model, few = course.model, ImageSet(course.images.images[:count], None, "few", "")
    if (name, count) == ("directions", 1):
        with pytest.raises(ValueError, match="two latents"):
            explore.directions(model, few)
    else:
        assert not getattr(explore, name)(model, few).message.value


def test_classes_of_images_without_labels_are_refused(course):
    with pytest.raises(ValueError, match="sample test has no labels"):
        explore.classes(course.model, type(course.images)(course.images.images, None, "sample test", ""))


# ---- what they are built of


@pytest.mark.parametrize("x", [
    to_uint8(torch.linspace(-1.2, 1.2, 60).view(3, 4, 5)), torch.linspace(-1.2, 1.2, 60).view(3, 4, 5),
])
def test_a_picture_in_colour_becomes_a_png_of_the_same_pixels(x):
    assert torch.equal(pixels(panels.png(x)), to_uint8(torch.linspace(-1.2, 1.2, 60).view(3, 4, 5)))


def test_a_map_is_blue_below_zero_red_above_and_as_strong_as_the_bound_says():
    red, green, blue = pixels(panels.png(torch.tensor([[-2.0, -1.0, 0.0, 2.0]]))).int()[:, 0]
    assert blue[0] > red[0] + 50 and red[3] > blue[3] + 50 and min(red[2], green[2], blue[2]) > 240 and red[1] > red[0]
    assert torch.equal(pixels(panels.png(torch.full((1, 1), 2.0), 4.0)), pixels(panels.png(torch.tensor([[1.0, 2.0]])))[..., :1])
    assert pixels(panels.png(torch.zeros(3, 3))).min() > 240


def test_many_moves_at_once_draw_once_even_if_one_of_them_fails():
    drawn, sliders = [], [panels.slider("", 0, 0, 9, 1) for _ in range(3)]
    redraw = panels.Redraw(lambda: drawn.append([s.value for s in sliders]), panels.label(""))
    redraw.watch(*sliders)
    with redraw.once():
        for slider in sliders:
            slider.value = 5
    assert drawn == [[5, 5, 5]]
    with pytest.raises(KeyError), redraw.once():
        raise KeyError
    sliders[0].value = 1
    assert drawn[-1] == [1, 5, 5]


def test_a_click_chooses_a_thumbnail_and_marks_it_alone():
    images = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    pick, heard = panels.Thumbnails(images, 1), []
    pick.choice.observe(lambda change: heard.append(change["new"]), "value")
    marked = [["dcae-chosen" in button._dom_classes for button in pick.buttons]]
    pick.buttons[0].click()
    marked.append(["dcae-chosen" in button._dom_classes for button in pick.buttons])
    assert heard == [0] and marked == [[False, True, False], [True, False, False]]
    style = pick.children[0].value
    for button, image in zip(pick.buttons, images):
        (rule,) = re.findall(rf"\.{button._dom_classes[1]} {{ background-image: url\(data:image/png;base64,(.*?)\) }}", style)
        assert torch.equal(pixels(base64.b64decode(rule)), to_uint8(image))


def test_the_buttons_of_a_board_stand_row_by_row():
    board = panels.Sites(2, 3)
    board.buttons[3].value = True
    assert board.buttons[3].tooltip == "row 1, column 0"
    assert board.chosen().tolist() == [[False, False, False], [True, False, False]]


def test_a_change_is_drawn_on_a_log_scale_and_the_edge_of_the_region_in_white():
    delta, near = torch.zeros(3, 4, 5), torch.zeros(4, 5, dtype=torch.bool)
    delta[1, 3] = torch.tensor([0.05, 0.1, -5.0498, 255, 999]) / 127.5      # in levels; 5.05 is halfway from 0.1 to 255
    near[:2, :3] = True
    drawn = plots.log_change(delta, near)
    white = (drawn == 255).all(0)
    expected = torch.zeros(32, 40, dtype=torch.bool)
    expected[:18, 24:26] = expected[16:18, :26] = True
    expected[16:18, 24:26] = white[16:18, 24:26]            # the corner may be round
    assert drawn.dtype == torch.uint8 and torch.equal(white, expected)
    colours = [plt.get_cmap("magma")(share, bytes=True)[:3] for share in (0.0, 0.0, 0.5, 1.0, 1.0)]
    assert (drawn[:, 28, 4::8].T.int() - torch.tensor(np.array(colours)).int()).abs().max() <= 2


@pytest.mark.parametrize("H, W, rows, columns", [(10, 7, (3, 7), (1, 5)), (4, 2, (0, 4), (0, 2)), (3, 9, (0, 3), (2, 6))])
def test_the_middle_of_a_picture_is_as_far_from_either_side(H, W, rows, columns):
    x = torch.arange(3 * H * W).view(3, H, W)
    assert torch.equal(plots.middle(x, 4), x[:, slice(*rows), slice(*columns)])


def test_a_sheet_of_channels_has_each_map_above_its_stamp():
    fig = plots.channel_sheet(torch.arange(5.0).view(5, 1, 1), torch.full((5,), 9.0), torch.linspace(-1, 1, 15).view(5, 3, 1, 1), list("abcde"), 3)
    axes = np.array(fig.axes).reshape(4, 3)
    plt.close(fig)
    for k, name in enumerate("abcde"):
        row, column = 2 * (k // 3), k % 3
        assert axes[row, column].get_title() == name and axes[row, column].images[0].get_array().item() == k
        assert axes[row, column].images[0].get_clim() == (-9, 9)
        stamp = to_uint8(torch.linspace(-1, 1, 15)).view(5, 3)[k]
        assert axes[row + 1, column].images[0].get_array().squeeze().tolist() == stamp.tolist()
    assert not axes[2, 2].images and not axes[3, 2].axison


# ---- uploads


def encoded(image, format, **options):
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def send(explorer, content, name="picture.png"):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": datetime.now(UTC)}
    explorer.controls["file"].value = (file,)


def png_16_bits():
    """RGB, which Pillow cannot write: all pixels (200, 100, 50) in the upper bytes."""
    rows = (b"\0" + bytes([200, 7, 100, 7, 50, 7]) * 32) * 32
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def bomb(side):
    """A header that promises this many pixels, and almost nothing behind it."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


FLAT = Image.new("RGB", (32, 32), (200, 100, 50))
GRADIENT = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 24))] * 3)
HALF = Image.new("RGBA", (32, 32), (200, 100, 50, 255))
HALF.paste((200, 100, 50, 0), (0, 16, 32, 32))
CLEAR = Image.new("P", (32, 32), 1)
CLEAR.putpalette([0, 0, 0, 200, 100, 50])
CLEAR.paste(0, (0, 16, 32, 32))
SIDES = Image.new("RGB", (40, 20), (200, 100, 50))
SIDES.paste((0, 0, 255), (20, 0, 40, 20))
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (32, 32), "blue")], "duration": 100}
TURNED = Image.Exif()
TURNED[0x0112] = 6                                          # clockwise by 90°: what is left comes to the top

GOOD = {                                                    # (content, height × width, colour above, colour below)
    "1 pixel": (encoded(FLAT.resize((1, 1)), "PNG"), (1, 1), (200, 100, 50), (200, 100, 50)),
    "a line": (encoded(FLAT.resize((5000, 1)), "PNG"), (1, 5000), (200, 100, 50), (200, 100, 50)),
    "a column": (encoded(FLAT.resize((1, 5000)), "PNG"), (5000, 1), (200, 100, 50), (200, 100, 50)),
    "CMYK": (encoded(FLAT.convert("CMYK"), "JPEG", quality=95), (32, 32), (200, 100, 50), (200, 100, 50)),
    "progressive": (encoded(FLAT, "JPEG", progressive=True, quality=95), (32, 32), (200, 100, 50), (200, 100, 50)),
    "palette": (encoded(FLAT.quantize(4), "PNG"), (32, 32), (200, 100, 50), (200, 100, 50)),
    "clear palette": (encoded(CLEAR, "PNG", transparency=0), (32, 32), (200, 100, 50), (255, 255, 255)),
    "RGBA": (encoded(HALF, "PNG"), (32, 32), (200, 100, 50), (255, 255, 255)),
    "LA": (encoded(HALF.convert("LA"), "PNG"), (32, 32), (124, 124, 124), (255, 255, 255)),
    "1 bit": (encoded(Image.new("1", (32, 32), 1), "PNG"), (32, 32), (255, 255, 255), (255, 255, 255)),
    "turned": (encoded(SIDES, "JPEG", exif=TURNED, quality=95), (40, 20), (200, 100, 50), (0, 0, 255)),
    "GIF": (encoded(FLAT, "GIF", **FRAMES), (32, 32), (200, 100, 50), (200, 100, 50)),
    "APNG": (encoded(FLAT, "PNG", **FRAMES), (32, 32), (200, 100, 50), (200, 100, 50)),
    "WebP": (encoded(FLAT, "WEBP", lossless=True, **FRAMES), (32, 32), (200, 100, 50), (200, 100, 50)),
    "3 × 16 bits": (png_16_bits(), (32, 32), (200, 100, 50), (200, 100, 50)),
}


@pytest.fixture(scope="module")
def uploads(course):
    return course["upload"]


@pytest.mark.parametrize("kind", GOOD)
def test_a_picture_of_any_kind_stands_upright_in_rgb_its_first_frame_on_white(uploads, kind):
    content, (H, W), above, below = GOOD[kind]
    send(uploads, content, f"{kind}.png")
    assert uploads.message.value == ""
    original = pixels(uploads.pictures["original"].value)
    assert original.shape == (3, H, W) and pixels(uploads.pictures["reconstruction"].value).shape == (3, H, W)
    for row, colour in ((0, above), (-1, below)):
        assert (original[:, row].int() - torch.tensor(colour)[:, None]).abs().max() <= 4       # JPEG loses a little
    assert any(f"{kind}.png: {W}×{H} pixels, " in text for text in html_of(uploads))


BAD = {
    "text": (b"some text", "is not a picture"),
    "empty": (b"", "is not a picture"),
    "truncated": (encoded(FLAT.resize((300, 300)), "JPEG")[:-200], "cannot be read as a picture .*truncated"),
    "broken": (encoded(GRADIENT, "PNG").replace(b"IDAT", b"IDAT\0"), "cannot be read as a picture"),
    "broken chunk": (
        b"\x8f\x05! ".join(encoded(Image.effect_noise((400, 400), 99), "PNG").rsplit(b"IDAT", 1)), "cannot be read .*broken PNG"
    ),
    "16 bits": (encoded(Image.fromarray(np.full((32, 32), 9999, np.uint16)), "PNG"), "has more than 8 bits"),
    "float": (encoded(Image.new("F", (32, 32)), "TIFF"), "has more than 8 bits"),
    "large": (bomb(10_000), "is 10000×10000; 16 megapixels at most"),
    "a little too large": (bomb(4001), "is 4001×4001; 16 megapixels at most"),
    "vast": (bomb(40_000), "cannot be read as a picture .*1600000000 pixels"),
}
if features.check("avif"):                                  # older versions of Pillow cannot write one
    BAD["damaged AVIF"] = encoded(FLAT, "AVIF").replace(b"pitm", b"pitx"), "cannot be read as a picture"


def test_a_photo_with_a_mistyped_tag_is_read_and_set_upright():
    entries = struct.pack(">HHHIHH", 2, 0x112, 3, 1, 6, 0) + struct.pack(">HHI4s", 0x11C, 2, 4, b"cam\0")     # text for a number
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entries + bytes(4)
    assert read_picture(io.BytesIO(encoded(FLAT.resize((20, 30)), "JPEG", exif=exif)), "photo.jpg").size == (30, 20)


def test_a_name_of_two_lines_makes_a_message_of_one():
    with pytest.raises(DataError, match=r"^a b is not a picture"):
        read_picture(io.BytesIO(b"text"), "a\nb")


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_shown_is_told_in_one_line_the_pictures_stay_and_the_next_upload_works(uploads, kind):
    content, reason = BAD[kind]
    with pytest.raises(DataError, match=f"^name {reason}"):
        read_picture(io.BytesIO(content), "name", explore.MOST_PIXELS)
    before = shown(uploads)
    send(uploads, content, f"{kind}.png")
    message = uploads.message.value
    assert re.fullmatch(rf'<b style="color:#D55E00">{kind}.png {reason}.*</b>', message)
    assert not re.search(r"\n|Traceback| at 0x|BytesIO", message)
    assert shown(uploads) == before
    assert not any(isinstance(w, widgets.FloatProgress) and w.layout.visibility != "hidden" for w in inside(uploads))
    send(uploads, encoded(GRADIENT.rotate(1 + [*BAD].index(kind)), "PNG"))
    assert uploads.message.value == "" and shown(uploads) != before


def test_a_hundred_megapixels_are_refused_before_one_is_decoded_and_without_a_warning(uploads, monkeypatch):
    content = encoded(Image.new("1", (10_000, 10_000)), "PNG")
    assert len(content) < 50_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.process_time()
        send(uploads, content)
        assert time.process_time() - start < 0.5
    assert "10000×10000; 16 megapixels at most" in uploads.message.value


@pytest.mark.parametrize("name", ["<script>alert(1)</script>.png", "\"><script x='.png", "a&lt;script>.png"])
@pytest.mark.parametrize("content", [encoded(FLAT, "PNG"), b"text"], ids=["good", "bad"])
def test_the_name_of_a_file_is_text_and_never_markup(uploads, name, content):
    send(uploads, content, name)
    page = " ".join(html_of(uploads))
    assert "<script" not in page and html.escape(name) in page
    assert re.search('<a class="jupyter-button" download="[^"<>]*-dcae.png" href="data:image/png;base64,[^"<>]*">', page)


def test_the_pictures_of_an_upload_are_its_reconstruction_in_tiles_and_the_link_saves_it(uploads, course):
    send(uploads, encoded(GRADIENT, "PNG"), "gradient.v2.png")
    x = to_model(torch.from_numpy(np.array(GRADIENT)).permute(2, 0, 1))
    y = reconstruct(course.model, x)
    assert_shows(uploads.pictures["original"], x)
    assert_shows(uploads.pictures["reconstruction"], y)
    assert_shows(uploads.pictures["error × 8"], (y - x).abs() * 8 - 1)
    assert f"gradient.v2.png: 40×24 pixels, {decibels(y, x)}" in html_of(uploads)
    name, link = next(found.groups() for text in html_of(uploads) if (found := re.search('download="(.*?)".*base64,(.*?)"', text)))
    assert name == "gradient.v2-dcae.png"
    assert base64.b64decode(link) == uploads.pictures["reconstruction"].value


@on("upload")
def test_one_view_of_an_upload_is_shown_at_a_time(explorer):
    for view in explorer.controls["view"].options:
        explorer.controls["view"].value = view
        assert [name for name, image in explorer.pictures.items() if image.layout.display != "none"] == [view]


def test_at_first_an_upload_shows_a_photo_of_the_course_or_yours(course, tmp_path):
    Image.new("RGB", (5, 3), (200, 100, 50)).save(tmp_path / "mine.png")
    explorer = explore.upload(course.model, tmp_path / "mine.png")
    assert (pixels(explorer.pictures["original"].value)[:, 1, 1] == torch.tensor([200, 100, 50])).all()
    with pytest.raises(DataError, match=r"missing.png is not there"):
        explore.upload(course.model, Path("missing.png"))
    _ = course["upload"]
    rows, names = course.stills["upload"]
    cat = read_picture(resource("photos") / "cat.webp", "cat")
    assert rows["middle"].shape == (3, 3, 96, 96) and names == ["original", "reconstruction", "error × 8"]
    assert (to_uint8(rows["middle"][0]).permute(1, 2, 0).numpy() == np.array(cat)[102:198, 177:273]).all()


# ---- any figure


def test_a_figure_follows_its_control_and_tells_what_its_function_raises():
    def draw(height):
        fig, ax = plt.subplots()
        ax.bar(["a"], [height])
        if height > 5:
            raise ValueError("too tall")
        return fig

    explorer = explore.figure(draw, widgets.IntSlider(1, 0, 9))
    shown, before = explorer.pictures["figure"], explorer.pictures["figure"].value
    assert before == base64.b64decode(explorer.still) and bytes(before).startswith(b"\x89PNG")
    explorer.controls["control"].value = 3
    assert shown.value != before and explorer.message.value == ""
    after = shown.value
    explorer.controls["control"].value = 6
    assert shown.value == after and "too tall" in explorer.message.value
    explorer.controls["control"].value = 1
    assert shown.value == before and explorer.message.value == ""
    plt.close("all")
