"""Images as one uint8 array, and batches of them that live on the device."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class DataError(RuntimeError):
    """Data could not be found, downloaded or read; the message says what was tried, why it failed and what to do."""

    def _render_traceback_(self) -> list[str]:
        return [f"DataError: {self}"]  # notebooks show the message without the stack


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 [N, 3, H, W]; labels: int64 [N] or None; sha256: of the images' bytes in N,H,W,C order."""

    images: Tensor
    labels: Tensor | None
    name: str
    sha256: str

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> "ImageSet":
        """The same set with its tensors on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def batches(self, *arguments) -> Iterator[Tensor]:
        """`batches` of its images."""
        return batches(self.images, *arguments)


class Images(Protocol):
    """What a training asks of its images, be they in memory, as those of an `ImageSet`, or read meanwhile."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    def __len__(self) -> int: ...
    def to(self, device: torch.device, /) -> "Images": ...
    def batches(
        self, size: int, order: torch.Generator, skip: int, shard: Callable[[Tensor], Tensor], /
    ) -> Iterator[Tensor]: ...


class Splits(NamedTuple):
    """The images to train on, and those to test on."""

    train: Images
    test: ImageSet


def pixel_sizes(name: str, given) -> tuple[int, ...]:
    """A side in pixels, or several, as a tuple. ValueError, which names the argument, for what is not whole or below 1."""
    found = np.atleast_1d(given)
    if found.size and (found.dtype.kind not in "iu" or found.min() < 1):
        raise ValueError(f"{name} must be in whole pixels, 1 or more, got {given!r}")
    return tuple(found.ravel().tolist())


def to_model(images: Tensor) -> Tensor:
    """uint8 pixels → floats in [-1, 1], x / 127.5 - 1; any shape."""
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats → uint8 pixels, clamped to [-1, 1] and rounded; undoes `to_model` exactly; any shape."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def batches(
    images: Tensor, batch_size: int, generator: torch.Generator | None = None,
    skip: int = 0, shard: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """One epoch of float batches [B, 3, H, W] in [-1, 1] on the images' device, the last one shorter if need be.

    In random order drawn from a CPU generator; in the order of the images without one. The first `skip` batches are
    passed over; `shard` chooses, among the indices of a batch, those that are wanted.
    """
    N = len(images)
    order = torch.arange(N) if generator is None else torch.randperm(N, generator=generator)
    for index in islice(order.to(images.device).split(batch_size), skip, None):
        yield to_model(images[shard(index) if shard else index])


def eval_batch_size(images: ImageSet) -> int:
    """How many images to evaluate at once: as many as have the pixels of 500 of 32×32."""
    return max(1, 500 * 32 * 32 // images.images[0, 0].numel())


def image_set(images: np.ndarray, labels: Tensor | None, name: str) -> ImageSet:
    """From uint8 [N, H, W, 3]."""
    sha256 = hashlib.sha256(images.tobytes()).hexdigest()
    return ImageSet(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), labels, name, sha256)
