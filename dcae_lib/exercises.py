"""The checks behind `dcae_lib.course.check`: a function per exercise, True for a right answer. Solutions stand here!"""

import math

import torch
from torch import Tensor

from .blocks import DownBlock
from .data import load_images, to_model
from .explore import latents
from .metrics import psnr
from .model import DCAE
from .rearrange import space_to_channel


def _images(count: int = 50) -> Tensor:
    return to_model(load_images("sample").test.images[:count])


# 00


def check_00_1(bits_of_image, bits_of_latent):
    return (bits_of_image, bits_of_latent) == (24, 32)


def check_00_2(break_even):
    return break_even == 24


# 01


def check_01_1(my_channel_to_space):
    x = _images(8)
    return all(torch.equal(my_channel_to_space(space_to_channel(x, r), r), x) for r in (2, 4))


def check_01_2(destination):
    numbered = torch.arange(3 * 8 * 16).view(1, 3, 8, 16)  # each pixel has a number of its own
    moved = {r: space_to_channel(numbered, r)[0] for r in (2, 4)}
    places = [(r, *place) for r in moved for place in (numbered[0] >= 0).nonzero().tolist()]
    return all(moved[r][tuple(destination(c, i, j, r))] == numbered[0, c, i, j] for r, c, i, j in places)


def check_01_3(new_order):
    x = _images(8)
    return torch.equal(space_to_channel(space_to_channel(x, 2), 2)[:, new_order], space_to_channel(x, 4))


# 02


def check_02_2(my_count):
    return my_count == sum(p.numel() for p in DownBlock(16, 32).parameters())


# 03


def check_03_1(my_encoder_count):
    return my_encoder_count == sum(p.numel() for p in DCAE().encoder.parameters())


# 04


def check_04_1(numbers_soap, numbers_adam):
    moments = 2 * 32 * 32 * 3 * 3
    return (numbers_soap, numbers_adam) == (moments + 2 * (32**2 + 32**2 + 3**2 + 3**2), moments)


# 05


def check_05_2(steps_per_epoch, steps_of_cifar10):
    here = math.ceil(len(load_images("sample").train) / 32)
    return (steps_per_epoch, steps_of_cifar10) == (here, 40 * math.ceil(50_000 / 32))


# 06


def _channel(model, z, k, gain):
    gains = torch.ones(16)
    gains[k] = gain
    return latents.decode_all(model, latents.scale_channels(z, gains, z.mean((0, 2, 3))))


def check_06_1(turns_yellow, can_go):
    model = DCAE.from_pretrained()
    z = latents.encode_all(model, _images(64))
    birds = torch.stack([_channel(model, z, k, -2)[2].mean((1, 2)) for k in range(16)])  # [16, 3]
    yellow = birds[:, :2].amin(1) - birds[:, 2]  # the lesser of red and green, over blue
    return (turns_yellow, can_go) == (yellow.argmax(), latents.effects(model, z)[1].argmax())


def check_06_2(missed_most):
    model = DCAE.from_pretrained()
    z = latents.encode_all(model, _images(500))
    found = {k: int(missed_most(k)) for k in (2, 8, 15)}
    whole = latents.decode_all(model, z)
    close = {k: psnr(_channel(model, z, k, 0), whole) for k in found}
    return all(close[k][answer] < close[k].min() + 0.3 for k, answer in found.items())


def check_06_3(reach_of):
    model, sites = DCAE.from_pretrained(), torch.eye(64, dtype=torch.bool).view(8, 8, 8, 8)
    z = latents.encode_all(model, _images(1))[0]
    places = ((0, 0), (3, 5), (7, 2))
    return all(torch.equal(reach_of(*place), latents.reach(model, z, sites[place])) for place in places)


# 07


# 08


# 09
