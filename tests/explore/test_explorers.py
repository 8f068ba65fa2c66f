"""Each control of an explorer draws what the tensor functions say, and failures are reported."""

import base64
import io
import re

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from inspection import all_controls, assert_shows, click, on, pixels, shown, text_of
from PIL import Image

from dcae_lib import ImageSet, explore, plots
from dcae_lib.explore import latents
from dcae_lib.explore.widgets import Picture, decibels

ALL = "channels interpolation directions quantisation damage brush upload budget".split()


@pytest.mark.parametrize("name", ALL)
def test_explorers_are_widgets_with_a_small_still_figure(course, name):
    bundle = course[name]._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == course[name].model_id
    image = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    image.load()
    assert image.format == "PNG" and image.width == 800
    assert len(bundle["image/png"]) < 150_000 and len(np.unique(np.array(image).reshape(-1, 4), axis=0)) > 100
    assert course[name].message.value == "" and not plt.get_fignums()


ON_SITES = (("image", 5), ("sites", None), ("freeze", True))
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
    *[("damage", control, value, "result change") for control, value in (*ON_SITES, ("noise", 0.5))],
    *[("brush", control, value, "result change") for control, value in (*ON_SITES, ("paint", 5))],
    ("budget", "image", 5, "original DCAE AVIF WebP JPEG bits"),
    ("budget", "bytes", 200, "DCAE AVIF WebP JPEG bits"),
]


@pytest.mark.parametrize("explorer, control, value, changed", MOVES, indirect=["explorer"])
def test_controls_change_only_their_pictures_and_move_back(explorer, control, value, changed):
    controls, start = explorer.controls[control], shown(explorer)
    for control in controls[:: 9 if value is None else 1] if isinstance(controls, list) else [controls]:
        before = control.value
        control.value = not before if value is None else value
        assert {name for name, data in shown(explorer).items() if data != start[name]} == start.keys() & changed.split()
        assert explorer.message.value == ""
        control.value = before
        assert shown(explorer) == start


@on(*(name for name in ALL if name != "upload"))
def test_errors_in_callbacks_are_shown_and_pictures_stay(explorer, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("<b>broken</b>")

    before, control = shown(explorer), next(all_controls(explorer))
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "show", broken)
        patch.setattr(plots, "figure_png", broken)
        control.value = "ssim" if control.value == "psnr" else 3 - control.value
    message = explorer.message.value
    assert shown(explorer) == before and "Traceback (most recent call last)" in message
    assert "RuntimeError: &lt;b&gt;broken&lt;/b&gt;" in message and "<b>" not in message


@on("channels")
def test_gains_and_switches_move_channels_about_their_means(explorer, course):
    mean, explorer.controls["image"].value = course.z.mean((0, 2, 3)), 5
    x, y = course.x[5], course.decode(course.z[5])
    assert_shows(explorer, original=x, result=y, difference=(y - x).abs() * 4 - 1)
    assert explorer.pictures["result"].title.value == f"reconstruction, {decibels(y, x)}"
    for k, (gain, switch) in enumerate(zip(explorer.controls["gains"], explorer.controls["switches"])):
        z = course.z[5].clone()
        gain.value, z[k] = -1.5, mean[k] - 1.5 * (z[k] - mean[k])
        assert_shows(explorer, result=course.decode(z))
        switch.value, z[k] = False, mean[k]
        assert_shows(explorer, result=course.decode(z))
        gain.value, switch.value = 1, True


@on("interpolation")
def test_walks_lead_from_one_picture_to_the_other(explorer, course):
    controls, pictures = explorer.controls, explorer.pictures
    controls["from"].value, controls["to"].value = 2, 9
    for percent in (0, 25, 100):
        controls["percent"].value = percent
        z, x = (v[2] + percent / 100 * (v[9] - v[2]) for v in (course.z, course.x))
        y = course.decode(z)
        assert_shows(explorer, latents=y, pixels=x)
        assert pictures["pixels"].title.value == f"through the pixels, {decibels(y, x)} between them"
        if percent != 25:
            end = pixels(pictures["strip"]).chunk(8, dim=2)[-1 if percent else 0]
            both = torch.cat([pixels(pictures["latents"]), pixels(pictures["pixels"])], 1)
            assert (end.int() - both.int()).abs().max() <= 1  # decoded in a batch, the strip rounds differently


@on("directions")
def test_steps_follow_principal_components_until_reset(explorer, course):
    mean, axes, std = latents.principal_components(course.z, 8)
    start, steps = shown(explorer), explorer.controls["steps"]
    steps[0].value, steps[7].value = 2, -3
    move = 2 * std[0] * axes[0] - 3 * std[7] * axes[7]
    for explorer.controls["start"].value, z in ((3, course.z[2]), (0, mean)):
        assert_shows(explorer, picture=course.decode(z + move))
    click(explorer, "reset")
    assert_shows(explorer, picture=course.decode(mean))
    assert shown(explorer) == start


@on("quantisation")
@pytest.mark.parametrize("levels", [2, 8, 256])
def test_levels_and_bits_are_those_of_a_histogram(explorer, course, levels):
    explorer.controls["image"].value, explorer.controls["levels"].value = 5, levels
    rounded, bits = course.z[5].clone(), 0.0
    for k, values in enumerate(course.z.transpose(0, 1).double().numpy()):
        grid = np.linspace(values.min(), values.max(), levels)
        index = np.abs(values[..., None] - grid).argmin(-1)
        rounded[k] = torch.from_numpy(grid[index[5]])
        bits -= np.log2(np.bincount(index.flatten())[index[5]] / index.size).sum()
    y = course.decode(rounded)
    assert_shows(explorer, result=y)
    assert explorer.pictures["result"].title.value == f"{levels} levels, {decibels(y, course.x[5])}"
    said = float(re.search(r"about ([\d.]+) bits per pixel", text_of(explorer))[1])
    assert said == pytest.approx(bits / 1024, abs=0.03)


@on("damage", "brush")
def test_frozen_norms_keep_changes_inside_the_line(explorer):
    def outside():
        return float(re.search(r"outside the line at most ([\d.]+)", text_of(explorer))[1])

    assert outside() > 0  # one corner is chosen at first
    explorer.controls["freeze"].value = True
    assert outside() == 0
    change = pixels(explorer.pictures["change"])
    dark = (change == torch.tensor(plt.get_cmap("magma")(0.0, bytes=True)[:3]).view(3, 1, 1)).all(0)
    assert (dark | (change == 255).all(0))[24 * 8 :].all() and dark[:32, :32].float().mean() < 0.1


@on("damage")
def test_damage_is_holes_at_channel_means_and_noise(explorer, course):
    explorer.controls["image"].value, mean = 4, course.z.mean((0, 2, 3))
    click(explorer, "clear")
    assert_shows(explorer, result=course.decode(course.z[4]))
    assert "outside the line" not in text_of(explorer)
    explorer.controls["sites"][8 * 1 + 7].value, z = True, course.z[4].clone()
    z[:, 1, 7] = mean
    assert_shows(explorer, result=course.decode(z))
    assert f"{decibels(course.decode(z), course.x[4])} from the original; outside the line" in text_of(explorer)
    explorer.controls["noise"].value = 0.5
    noise = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0)) * course.z.std((0, 2, 3))[:, None, None]
    z = course.z[4] + 0.5 * noise
    z[:, 1, 7] = mean
    assert_shows(explorer, result=course.decode(z))
    assert "reach the whole picture" in text_of(explorer)


@on("brush")
def test_brushes_paint_latents_of_another_picture(explorer, course):
    explorer.controls["paint"].value, explorer.controls["image"].value = 3, 4
    explorer.controls["sites"][8 * 5 + 2].value = True  # in addition to the corner that is painted at first
    z = course.z[4].clone()
    z[:, 5, 2], z[:, :2, :2] = course.z[3, :, 5, 2], course.z[3, :, :2, :2]
    assert_shows(explorer, result=course.decode(z))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["channels", "interpolation", "directions", "quantisation", "damage", "brush"])
def test_one_or_two_images_suffice(course, name, count):
    few = ImageSet(course.images.images[:count], None, "few", "")
    if (name, count) != ("directions", 1):  # one image has no directions
        assert not getattr(explore, name)(course.model, few).message.value


def test_figures_follow_their_control_and_report_errors():
    explorer, drawn = explore.figure(lambda width: plt.figure(figsize=(width, 1)), widgets.IntSlider(1, 0, 9)), []
    for explorer.controls["control"].value in (1, 3, 0, 1):
        drawn.append(explorer.pictures["figure"].value)
        assert ("Traceback" in explorer.message.value) == (explorer.controls["control"].value == 0)
    plt.close("all")
    assert drawn[0] == drawn[3] == base64.b64decode(explorer.still) and drawn[1] == drawn[2] != drawn[0]
