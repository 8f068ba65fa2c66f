"""Helpers that look into explorers."""

import io

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from dcae_lib import to_uint8

SHARED = {"DCAE": 4, "AVIF": 283, "WebP": 29, "JPEG": 607}  # bytes that all files of a codec have alike


def points(bpp, **more):
    return [dict(quality=10 + 40 * k, bpp=bpp * 2**k, psnr=25 + 5 * k, ssim=0.8 + 0.05 * k, **more) for k in range(3)]


RECORD = dict(curves={"KLT": points(0.7)})
for name, constant in SHARED.items():
    RECORD["curves"][name] = dict(whole=points(1), stripped=points(0.5, constant=constant), mosaic=points(0.4))


def on(*names):
    """Parametrize a test by explorers."""
    return pytest.mark.parametrize("explorer", names, indirect=True)


def all_controls(explorer):
    for control in explorer.controls.values():
        yield from control if isinstance(control, list) else [control]


def png_of(picture):
    return getattr(picture, "image", picture).value


def shown(explorer):
    return {name: png_of(picture) for name, picture in explorer.pictures.items()}


def pixels(picture):
    """The pixels of a picture or of a PNG file."""
    data = picture if isinstance(picture, bytes) else png_of(picture)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def assert_shows(explorer, **pictures):
    """Compare pictures by name, to one level: a batch of another size rounds differently."""
    for name, x in pictures.items():
        assert (pixels(explorer.pictures[name]).int() - to_uint8(x).int()).abs().max() <= 1, name


def inside(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def text_of(explorer):
    return "\n".join(widget.value for widget in inside(explorer) if isinstance(widget, widgets.HTML))


def click(explorer, name):
    next(w for w in inside(explorer) if isinstance(w, widgets.Button) and w.description == name).click()
