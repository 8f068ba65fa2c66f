"""The explorer of the codec: the pictures shown are the best that fit."""

import re
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import torch
from inspection import RECORD, on, pixels

from dcae_lib import to_model
from dcae_lib.codec.compare import QUALITIES, best, candidates, constants, counted, decode
from dcae_lib.explore import codec as codec_explorers
from dcae_lib.explore.widgets import decibels


@on("budget")
def test_titles_and_pictures_are_those_of_files_that_fit(explorer, course):
    x = course.images.images[0]
    files = candidates(course.codec, x)
    for headers, size in product([True, False], [60, 200, 348, 600]):
        explorer.controls["headers"].value, explorer.controls["bytes"].value = headers, size
        for name, of in counted(files, headers, constants(RECORD)).items():
            title, picture, file = explorer.pictures[name].title.value, pixels(explorer.pictures[name]), best(of, size)
            if file:
                assert torch.equal(picture, course.codec.decompress(file.data) if name == "DCAE" else decode(file.data))
                counts = f"{file.size}" if headers else f"{file.size} of {len(file.data)}"
                psnr = decibels(to_model(picture), to_model(x))
                assert title == f"<b>{name}</b>, quality {file.quality}<br>{counts} bytes, {psnr}"
            else:
                smallest = min(file.size for file in of)
                assert title == f"<b>{name}</b> does not fit:<br>the smallest has {smallest} bytes" and smallest > size
                assert torch.equal(picture, codec_explorers.NOTHING)


@on("budget")
def test_map_shows_the_bits_of_each_site(explorer, course, monkeypatch):
    explorer.controls["bytes"].value, picture = 200, explorer.pictures["bits"]
    quality = int(re.search(r"quality (\d+)", explorer.pictures["DCAE"].title.value)[1])
    bits = course.codec.costs(course.images.images[0], quality)[0].sum(0)
    colours = plt.get_cmap("magma")((bits / bits.max()).numpy(), bytes=True)[..., :3]
    assert np.array_equal(pixels(picture).permute(1, 2, 0), colours)
    assert picture.title.value.endswith(f"0 dark … {bits.max():.0f} bright")
    with monkeypatch.context() as patch:
        patch.setattr(codec_explorers, "best", lambda *_: None)
        explorer.controls["bytes"].value = 300
    assert pixels(picture).max() < 8 and "0 bright" in picture.title.value


@on("budget")
def test_each_image_is_prepared_once(explorer, course, monkeypatch):
    compressed, compress = [], course.codec.compress
    monkeypatch.setattr(course.codec, "compress", lambda *arguments: compressed.append(1) or compress(*arguments))
    explorer.controls["bytes"].value = 60
    assert not compressed
    for explorer.controls["image"].value in (7, 0, 7):
        assert len(compressed) == len(QUALITIES["DCAE"])
