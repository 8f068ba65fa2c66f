"""Batches of thumbnails and of crops of photographs in turns, to train the codec on."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..data import DataError, ImageSet, image_files, open_picture, to_model
from ..data.sets import Shard

SIDES = 64, 128  # of the crops, in pixels
SHRINK = 1.3, 6.0  # photographs are scaled down by a random factor, so that the traces of JPEG go
SHARE = 3  # one batch in so many is of thumbnails
HELD = 64  # scaled photographs that are held in memory, chosen anew in every epoch


class Photographs:
    """Thumbnails, and crops of the photographs in a folder; made for `dcae_lib.loop` in place of an ImageSet.

    A batch has as many pixels as batch_size thumbnails: one in SHARE of thumbnails, the others of crops of one side.
    """

    def __init__(self, folder: str | Path, thumbnails: ImageSet):
        self.folder, self.thumbnails, self.device = Path(folder).expanduser(), thumbnails, thumbnails.images.device
        found = sorted(image_files(self.folder))
        if not found:
            raise DataError(f"{folder} holds no photographs; data/get_photos.py fetches free ones")
        self.paths = [self.folder / name for name, _ in found]
        self.name = f"{thumbnails.name} and {len(found)} photographs"
        self.sha256 = hashlib.sha256(repr((found, thumbnails.sha256)).encode()).hexdigest()

    def __len__(self) -> int:
        return SHARE * len(self.thumbnails)

    def to(self, device: str | torch.device) -> "Photographs":
        """Return the same images, with batches on a device."""
        moved = Photographs(self.folder, self.thumbnails)
        moved.device = torch.device(device)
        return moved

    def batches(self, batch_size: int, generator: Generator, skip=0, shard: Shard | None = None) -> Iterator[Tensor]:
        """Yield an epoch of float batches [B, 3, side, side] in [-1, 1], which depend on the generator alone."""
        order = torch.randperm(len(self.thumbnails), generator=generator).split(batch_size)
        turns = torch.randperm(math.ceil(len(self) / batch_size), generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        photographs = self._scaled(np.random.default_rng(seed))
        for k, turn in list(enumerate(turns.tolist()))[skip:]:
            if turn < len(order):
                images = self.thumbnails.images[order[turn]]
            else:
                rng = np.random.default_rng((seed, k))
                side = int(rng.choice(SIDES))
                count = max(1, batch_size * self.thumbnails.images[0, 0].numel() // side**2)
                images = torch.stack(
                    [_crop(photographs[rng.integers(len(photographs))], side, rng) for _ in range(count)]
                )
            yield to_model((images[shard(torch.arange(len(images)))] if shard else images).to(self.device))

    def _scaled(self, rng: np.random.Generator) -> list[Tensor]:
        """Read photographs, each in turn, and scale them down at random, but no side below that of the largest crop."""
        scaled = []
        order = np.concatenate([rng.permutation(len(self.paths)) for _ in range(-(-HELD // len(self.paths)))])
        for i in order[:HELD]:
            image = open_picture(self.paths[i])
            if min(image.size) < SIDES[-1]:
                raise DataError(f"{self.paths[i]} is smaller than {SIDES[-1]} pixels, the side of a crop")
            factor = min(rng.uniform(*SHRINK), min(image.size) / SIDES[-1])
            size = [round(length / factor) for length in image.size]
            scaled.append(pil_to_tensor(image.resize(size, Image.Resampling.LANCZOS)))
        return scaled


def _crop(photograph: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    """Cut a square out of uint8 [3, H, W], mirrored half of the time: [3, side, side]."""
    top, left = (rng.integers(length - side + 1) for length in photograph.shape[1:])
    crop = photograph[:, top : top + side, left : left + side]
    return crop.flip(2) if rng.random() < 0.5 else crop
