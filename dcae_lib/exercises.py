"""The checks behind `dcae_lib.course.check`: a function per exercise, True for a right answer. Solutions stand here!"""

import io
import itertools
import math
import tarfile

import torch
from torch import Tensor

from .blocks import DownBlock
from .data import load_images, to_model
from .explore.latents import frozen_norms
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


# 07


# 08


# 09


def check_09_1(from_the_middle, from_the_corner):
    model, x, counts = DCAE.from_pretrained().double(), _images(1).double(), []
    with frozen_norms(model.encoder, x), torch.no_grad():
        for place in (16, 0):
            changed = x.clone()
            changed[..., place, place] += 1
            counts.append(int(((model.encode(changed) - model.encode(x)).abs().amax(1) > 1e-9).sum()))
    return [from_the_middle, from_the_corner] == counts


def check_09_2(squares_with):
    found, counts = [], []
    for side in (1, 4, 6):
        count = torch.zeros(6, 9, dtype=torch.int64)
        for top, left in itertools.product(range(7 - side), range(10 - side)):
            count[top : top + side, left : left + side] += 1
        counts += count.flatten().tolist()
        found += [squares_with(row, column, 6, 9, side) for row, column in itertools.product(range(6), range(9))]
    return found == counts


# 09a


def check_09a_1(epoch_of_crops):
    seen = []

    def read(i):
        seen.append(i)
        return torch.arange(24 * 24).view(1, 24, 24) + 1000 * i

    def epoch(seed, skip):
        seen.clear()
        return torch.stack(list(epoch_of_crops(read, 12, seed, skip)))

    whole, other = epoch(1, 0), epoch(2, 0)
    places = whole[:, 0, 0, 0] % 1000
    varied = len(places.unique()) > 6 and not torch.equal(whole, other) and sorted(seen) == list(range(12))
    return varied and all(torch.equal(epoch(1, k), whole[k:]) and len(seen) == 12 - k for k in (0, 1, 5, 11))


def check_09a_2(members):
    data, places = io.BytesIO(), []
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, size in (("a.png", 700), ("b.png", 512), ("c.png", 1), ("d.png", 1025)):
            info = tarfile.TarInfo(name)
            info.size = size
            places.append((name, tar.offset + 512, size))
            tar.addfile(info, io.BytesIO(b"x" * size))
    return [tuple(place) for place in members(data.getvalue())] == places


# 09b


def check_09b_1(whole_gradient):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(7, 5, generator=generator), torch.randn(5, 3, generator=generator)]
    return all(
        torch.allclose(whole_gradient([part.mean(0) for part in parts], list(map(len, parts))), x.mean(0), atol=1e-6)
        for x in images
        for parts in ([x[n::3] for n in range(3)], [x[:1], x[1:]])
    )


def check_09b_2(best_processes):
    def seconds(N, B, image, sent, bandwidth, latency):
        return B / N * image + 2 * (N - 1) / N * sent / bandwidth + 2 * (N - 1) * latency

    for case in ((256, 1.3e-3, 4e5, 1.25e9, 5e-5), (256, 1.3e-3, 4e5, 1.25e8, 2e-4), (4096, 1e-5, 4e6, 1e9, 1e-5)):
        times = [seconds(N, *case) for N in range(1, 1000)]
        if abs(best_processes(*case) - 1 - times.index(min(times))) > 1:
            return False
    return True


# 09c


def check_09c_1(luck):
    best = torch.randn(100_000, 16, generator=torch.Generator().manual_seed(0)).amax(1).mean()
    return abs(luck - 0.1 * best) < 0.005


def check_09c_2(grid):
    settings = dict(lr=[1, 2, 3], groups=[4, 5], seed=[6])
    wanted = [dict(lr=lr, groups=groups, seed=6) for lr in (1, 2, 3) for groups in (4, 5)]
    found = grid(settings)
    return len(found) == 6 and all(row in found for row in wanted)
