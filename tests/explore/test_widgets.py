"""Maps have two colours, and thumbnails can be clicked."""

import base64
import re

import torch
from inspection import pixels

from dcae_lib import to_uint8
from dcae_lib.explore import widgets


def test_maps_are_blue_below_zero_and_red_above():
    red, _, blue = drawn = pixels(widgets.png(torch.tensor([[-2.0, -1.0, 0.0, 2.0]]))).int()[:, 0]
    assert blue[0] > red[0] + 50 and red[3] > blue[3] + 50 and drawn[:, 2].min() > 240 and red[1] > red[0]
    assert torch.equal(pixels(widgets.png(torch.full((1, 1), -2.0), 4.0))[:, 0, 0].int(), drawn[:, 1])
    assert pixels(widgets.png(torch.zeros(3, 3))).min() > 240


def test_clicked_thumbnails_alone_are_marked():
    images = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    pick, heard, marked = widgets.Thumbnails(images, 1), [], []
    pick.observe(lambda change: heard.append(change["new"]), "value")
    for button, image in zip(pick.buttons, images):
        marked.append(["dcae-chosen" in b._dom_classes for b in pick.buttons].index(True))
        button.click()
        rule = rf"\.{button._dom_classes[1]} {{ background-image: url\(.*?base64,(.*?)\) }}"
        assert torch.equal(pixels(base64.b64decode(re.search(rule, pick.children[0].value)[1])), to_uint8(image))
    assert heard == [0, 1, 2] and marked == [1, 0, 1]
