"""Figures in one style: changes on a log scale, and sheets of channels."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from dcae_lib import plots, to_uint8


def test_changes_are_drawn_on_a_log_scale_with_white_edges():
    delta, near = torch.zeros(3, 4, 5), torch.zeros(4, 5, dtype=torch.bool)
    delta[1, 3] = torch.tensor([0.05, 0.1, -5.0498, 255, 999]) / 127.5  # in levels; 5.05 is halfway from 0.1 to 255
    near[:2, :3] = True
    drawn = plots.log_change(delta, near)
    white, expected = (drawn == 255).all(0), torch.zeros(32, 40, dtype=torch.bool)
    expected[:18, 24:26] = expected[16:18, :26] = True
    expected[16:18, 24:26] = white[16:18, 24:26]  # the corner may be round
    assert drawn.dtype == torch.uint8 and torch.equal(white, expected)
    colours = [plt.get_cmap("magma")(share, bytes=True)[:3] for share in (0.0, 0.0, 0.5, 1.0, 1.0)]
    assert (drawn[:, 28, 4::8].T.int() - torch.tensor(np.array(colours)).int()).abs().max() <= 2


def test_sheets_show_each_channel_map_above_its_stamp():
    stamps = torch.linspace(-1, 1, 30).view(10, 3, 1, 1)
    fig = plots.channel_sheet(torch.arange(10.0).view(10, 1, 1), torch.full((10,), 9.0), stamps, list("abcdefghij"))
    axes = np.array(fig.axes).reshape(2, 2, 8).transpose(0, 2, 1).reshape(16, 2)
    plt.close(fig)
    for k, (top, bottom) in enumerate(axes[:10]):
        blue_to_red = plt.get_cmap("RdBu_r")((k / 9 + 1) / 2, bytes=True)[:3]
        assert top.get_title() == "abcdefghij"[k] and tuple(top.images[0].get_array().squeeze()) == blue_to_red
        assert bottom.images[0].get_array().squeeze().tolist() == to_uint8(stamps[k]).flatten().tolist()
    assert not any(ax.images or ax.axison for ax in axes[10:].flat)
