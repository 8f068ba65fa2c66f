"""The checks behind `dcae_lib.course.check`: a function per exercise, True for a right answer. Solutions stand here!"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import MiddleStage, pool_down
from .codec import Codec
from .data import load_images, to_model
from .metrics import psnr
from .model import DCAE
from .rearrange import space_to_channel


def _images(count: int = 50) -> Tensor:
    return to_model(load_images("sample").test.images[:count])


# 00


def check_00_1(fewest_bits):
    x, model = _images(500), DCAE.from_pretrained()
    with torch.no_grad():
        z = model.encode(x)
        low, exact = z.min(), psnr(model.decode(z), x).mean()
        steps = [(z.max() - low) / (2**bits - 1) for bits in (fewest_bits, fewest_bits - 1)]
        lost = [exact - psnr(model.decode(((z - low) / step).round() * step + low), x).mean() for step in steps]
    return lost[0] <= 1 < lost[1]


def check_00_2(most_costly):
    x, model = _images(500), DCAE.from_pretrained()
    with torch.no_grad():
        z = model.encode(x)
        means = z.mean((0, 2, 3))
        left_over = [
            psnr(model.decode(z.index_fill(1, torch.tensor(k), float(means[k]))), x).mean().item() for k in range(16)
        ]
    return most_costly == left_over.index(min(left_over))


def check_00_3(highest_quality):
    codec, ship = Codec.from_pretrained(), load_images("sample").test.images[8]
    return highest_quality == max(q for q in range(101) if len(codec.compress(ship, q)) <= 307)


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


def check_03_1(error_first_coordinate, error_at_best):
    points = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [1.0, 3.0], [-1.0, -3.0]])
    smallest = torch.linalg.eigvalsh(points.T @ points / 4)[0].item()
    expected = points[:, 1].square().mean().item(), smallest
    return all(math.isclose(*pair, rel_tol=1e-4) for pair in zip((error_first_coordinate, error_at_best), expected))


def check_03_2(middle_stage):
    sizes = ((32, 16), (16, 32), (24, 24), (8, 40))
    return all(middle_stage(i, o) == sum(p.numel() for p in MiddleStage(i, o).parameters()) for i, o in sizes)


def check_03_3(my_rank, pca, x, target):
    return psnr(pca(x, my_rank - 1), x).mean() <= target < psnr(pca(x, my_rank), x).mean()


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
