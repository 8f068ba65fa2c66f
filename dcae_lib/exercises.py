"""The checks behind `dcae_lib.course.check`: a function per exercise, True for a right answer. Solutions stand here!"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import MiddleStage, pool_down
from .data import load_images, to_model
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


def check_02_1(changed_of_8_groups, changed_of_1_group):
    before = torch.arange(1024.0).view(1, 16, 8, 8)
    after = before.clone()
    after[0, 5, 2, 3] += 100
    counts = [int((F.group_norm(before, g) != F.group_norm(after, g)).sum()) for g in (8, 1)]
    return [changed_of_8_groups, changed_of_1_group] == counts


def check_02_2(mirrored_up):
    z = torch.randn(2, 32, 8, 8)
    return torch.allclose(pool_down(mirrored_up(z, 16), 32), z, atol=1e-5)


def check_02_3(tensors_without_gradient):
    block = MiddleStage(32, 16)
    block(torch.randn(4, 32, 8, 8)).square().mean().backward()
    return tensors_without_gradient == sum(not p.grad.any() for p in block.parameters())


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


# 07


# 08


# 09
