"""Any picture can be uploaded; what is not one gets a line of text."""

import base64
import html
import io
import re
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from inspection import assert_shows, inside, pixels, shown, text_of
from PIL import Image

from dcae_lib import explore, plots, to_model
from dcae_lib.data import DataError, read_picture
from dcae_lib.explore.widgets import decibels
from dcae_lib.files import resource
from dcae_lib.tiles import reconstruct

BROWN = (200, 100, 50)
FLAT = Image.new("RGB", (32, 32), BROWN)
GRADIENT = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 24))] * 3)


def encoded(image):
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def send(explorer, content, name="picture.png"):
    control = explorer.controls["file"]
    file = dict(name=name, type="", size=len(content), content=memoryview(content), last_modified=datetime.now(UTC))
    control.set_trait("value", {name: file} if isinstance(control.value, dict) else (file,))  # ipywidgets 7 or 8


@pytest.fixture(scope="module")
def uploads(course):
    return course["upload"]


def test_a_thin_line_is_shown_whole(uploads):
    send(uploads, encoded(FLAT.resize((5000, 1))), "line.png")
    assert uploads.message.value == "" and "line.png: 5000×1 pixels, " in text_of(uploads)
    assert {pixels(picture).shape for picture in uploads.pictures.values()} == {(3, 1, 5000)}


def test_a_bad_file_gets_one_line_and_pictures_stay(uploads):
    before = shown(uploads)
    send(uploads, b"some text", "text.png")
    message = uploads.message.value
    assert re.fullmatch('<pre style="color:#D55E00; white-space: pre-wrap">text.png is not a picture.*</pre>', message)
    assert not re.search(r"\n|Traceback| at 0x|BytesIO", message) and shown(uploads) == before
    assert not any(isinstance(w, widgets.FloatProgress) and w.layout.visibility != "hidden" for w in inside(uploads))
    send(uploads, encoded(GRADIENT.rotate(1)))
    assert uploads.message.value == "" and shown(uploads) != before


@pytest.mark.parametrize("name", ["<script>alert(1)</script>.png", "\"><script x='.png", "a&lt;script>.png"])
@pytest.mark.parametrize("content", [encoded(FLAT), b"text"], ids=["good", "bad"])
def test_file_names_are_never_markup(uploads, name, content):
    send(uploads, content, name)
    page = text_of(uploads)
    assert "<script" not in page and html.escape(name) in page
    assert re.search(
        '<a class="jupyter-button" download="[^"<>]*-dcae.png" href="data:image/png;base64,[^"<>]*">', page
    )


def test_uploads_are_reconstructed_in_tiles_and_can_be_saved(uploads, course):
    send(uploads, encoded(GRADIENT), "gradient.v2.png")
    x = to_model(torch.from_numpy(np.array(GRADIENT)).permute(2, 0, 1))
    y = reconstruct(course.model, x)
    assert_shows(uploads, **{"original": x, "reconstruction": y, "error × 8": (y - x).abs() * 8 - 1})
    assert f"gradient.v2.png: 40×24 pixels, {decibels(y, x)}" in text_of(uploads)
    name, link = re.search('download="(.*?)".*base64,(.*?)"', text_of(uploads)).groups()
    assert name == "gradient.v2-dcae.png" and base64.b64decode(link) == uploads.pictures["reconstruction"].value


def test_first_picture_is_the_cat_or_yours(course, tmp_path, monkeypatch):
    FLAT.save(tmp_path / "mine.png")
    explorer = explore.upload(course.model, tmp_path / "mine.png")
    assert (pixels(explorer.pictures["original"])[:, 1, 1] == torch.tensor(BROWN)).all()
    with pytest.raises(DataError, match=r"missing.png cannot be read"):
        explore.upload(course.model, Path("missing.png"))
    stills, image_rows = [], plots.image_rows
    monkeypatch.setattr(plots, "image_rows", lambda *arguments: stills.append(arguments) or image_rows(*arguments))
    explorer = explore.upload(course.model)
    cat = read_picture(resource("photos") / "cat.webp")
    assert torch.equal(pixels(explorer.pictures["original"]), cat)
    ((rows, names),) = stills
    assert torch.equal(rows["middle"][0], to_model(cat[:, 102:198, 178:274])) and names == [*explorer.pictures]
