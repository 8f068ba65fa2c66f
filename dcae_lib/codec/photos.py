"""Batches of crops of photographs, to train the codec on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor

from ..data import DataError, Splits, image_files, image_set, open_picture, read_picture, to_model
from ..data.sets import Shard
from ..files import resource

SIDES = 64, 128  # of the crops, in pixels
SHRINK = 1.3, 6.0  # photographs are scaled down by a random factor, so that the traces of JPEG go
HELD = 64  # scaled photographs that are held in memory, chosen anew in every epoch
EPOCH = 100_000  # an epoch has as many pixels as so many images of 32×32


def photographs(folder: str | Path) -> Splits:
    """Return crops of the photographs in a folder, and to test on the middles of those that come with the package."""
    tests = [center_crop(read_picture(path), 256) for path in sorted(resource("photos").glob("*.webp"))]
    return Splits(Photographs(folder), image_set(torch.stack(tests), None, "photographs of the course"))


class Photographs:
    """Crops of the photographs in a folder; made for `dcae_lib.loop` in place of an ImageSet.

    A batch has as many pixels as batch_size images of 32×32, in crops of one side.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        self.folder, self.device = Path(folder).expanduser(), torch.device(device)
        found = sorted(image_files(self.folder))
        if not found:
            raise DataError(f"{folder} holds no photographs; data/get_photos.py fetches free ones")
        self.paths = [self.folder / name for name, _ in found]
        self.name, self.sha256 = f"{len(found)} photographs", hashlib.sha256(repr(found).encode()).hexdigest()

    def __len__(self) -> int:
        return EPOCH

    def to(self, device: str | torch.device) -> "Photographs":
        """Return the same images, with batches on a device."""
        return Photographs(self.folder, device)

    def batches(self, batch_size: int, generator: Generator, skip=0, shard: Shard | None = None) -> Iterator[Tensor]:
        """Yield an epoch of float batches [B, 3, side, side] in [-1, 1], which depend on the generator alone."""
        seed = int(torch.randint(2**62, (), generator=generator))
        scaled = self._scaled(np.random.default_rng(seed))
        for k in range(skip, -(-EPOCH // batch_size)):
            rng = np.random.default_rng((seed, k))
            side = int(rng.choice(SIDES))
            count = max(1, batch_size * 32**2 // side**2)
            images = torch.stack([_crop(scaled[rng.integers(len(scaled))], side, rng) for _ in range(count)])
            yield to_model((images[shard(torch.arange(count))] if shard else images).to(self.device))

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
