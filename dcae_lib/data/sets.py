"""Sets of images in memory, their batches, and the way from pixels to the model's floats and back."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Shard = Callable[[Tensor], Tensor]  # from the indices of a batch to those that this process trains on


class DataError(RuntimeError):
    """Data could not be found, downloaded or read; the message says what was tried, why it failed and what to do."""

    def _render_traceback_(self) -> list[str]:
        return [f"DataError: {self}"]  # notebooks show the message without the stack


@dataclass(frozen=True)
class ImageSet:
    """Images in memory: uint8 [N, 3, H, W], labels int64 [N] or None, SHA-256 of the pixels in N,H,W,C order."""

    images: Tensor
    labels: Tensor | None
    name: str
    sha256: str

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> "ImageSet":
        """Return the same set with its tensors on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def batches(self, batch_size: int, generator=None, skip=0, shard: Shard | None = None) -> Iterator[Tensor]:
        """Yield one epoch of float batches [B, 3, H, W] in [-1, 1], as the function `batches` does."""
        return batches(self.images, batch_size, generator, skip, shard)


class Splits(NamedTuple):
    """The images to train on and those to test on."""

    train: Any  # an ImageSet, or an ImageStream that reads images while the network trains
    test: ImageSet


def image_set(images: Tensor, labels: Tensor | None, name: str) -> ImageSet:
    """Make a set of uint8 [N, 3, H, W] and compute its hash."""
    sha256 = hashlib.sha256(images.permute(0, 2, 3, 1).numpy().tobytes()).hexdigest()
    return ImageSet(images.contiguous(), labels, name, sha256)


def batches(
    images: Tensor, batch_size: int, generator: Generator | None = None, skip: int = 0, shard: Shard | None = None
) -> Iterator[Tensor]:
    """Yield one epoch of float batches [B, 3, H, W] in [-1, 1] on the images' device; the last may be shorter.

    The order is drawn from a CPU generator; without one, images come in their own order. The first `skip` batches are
    left out; `shard` maps the indices of each batch to those that are wanted.
    """
    N = len(images)
    order = torch.arange(N) if generator is None else torch.randperm(N, generator=generator)
    for indices in islice(order.to(images.device).split(batch_size), skip, None):
        yield to_model(images[shard(indices) if shard else indices])


def to_model(images: Tensor) -> Tensor:
    """Map uint8 pixels of any shape to floats in [-1, 1]: x / 127.5 - 1.

    On a CPU, images [N, 3, H, W] lie in memory channels last, in which convolutions are faster (bench/train.py).
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}")
    if images.ndim == 4 and images.is_cpu:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Clamp floats of any shape to [-1, 1] and round them to uint8 pixels; undoes `to_model` exactly."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def eval_batch_size(images: ImageSet) -> int:
    """Return how many images have as many pixels as 500 of 32×32: a batch for evaluation."""
    return max(1, 500 * 32 * 32 // images.images[0, 0].numel())
