"""Images as one uint8 array: the embedded sample, CIFAR-10 or a folder, and batches that live on the device."""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from .cifar10 import CLASSES, SHA256, DataError, load_cifar10
from .process import asked_device
from .resources import resource

# How to set a picture upright, by its EXIF orientation; 1 is upright.
UPRIGHT = dict(zip(range(2, 9), (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
)))
# What is opened: by its content Pillow would also choose formats for which it starts other programs (EPS).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# All that Pillow was seen to raise on damaged files of its formats.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError)


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
        self, size: int, order: torch.Generator, skip: int, part: Callable[[Tensor], Tensor], /
    ) -> Iterator[Tensor]: ...


class Splits(NamedTuple):
    """The images to train on, and those to test on."""

    train: Images
    test: ImageSet


def load_images(source: str | Path = "sample", size: int | tuple[int, int] | None = None, fit: str = "crop") -> Splits:
    """Load "sample" (2,000 + 500 CIFAR-10 images that come with the package), "cifar10" or a folder of images.

    For a folder, with those within it and links followed: `size` is a side in pixels, or (height, width), to which every image
    is brought: fit="crop" scales and cuts the centre, fit="resize" stretches. Without a size all images must have the same. A
    tenth, chosen with a fixed seed, is the test set; labels are None. Raises DataError if the images cannot be had or read, and
    ValueError for another fit, a side that is not whole or below 1, or a size for images that have theirs.
    """
    if fit not in ("crop", "resize"):
        raise ValueError(f'fit must be "crop" or "resize", got {fit!r}')
    if source in ("sample", "cifar10") and size is not None:
        raise ValueError(f'size= is for a folder of images; "{source}" has 32×32 images')
    if source == "sample":
        return _load_sample()
    if source == "cifar10":
        arrays = load_cifar10()
        return Splits(*(
            ImageSet(arrays[f"{s}_images"], arrays[f"{s}_labels"], f"cifar10 {s}", SHA256[f"{s}_images"]) for s in ("train", "test")
        ))
    if size is None:
        return _load_folder(Path(source), None, fit)
    given = sides("size", size)
    if len(given) not in (1, 2):
        raise ValueError(f"size must be a side or (height, width), got {size}")
    return _load_folder(Path(source), (given[0], given[-1]), fit)


def sides(name: str, given) -> tuple[int, ...]:
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
    skip: int = 0, part: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """One epoch of float batches [B, 3, H, W] in [-1, 1] on the images' device, the last one shorter if need be.

    In random order drawn from a CPU generator; in the order of the images without one. The first `skip` batches are
    passed over; `part` chooses, among the indices of a batch, those that are wanted.
    """
    N = len(images)
    order = torch.arange(N) if generator is None else torch.randperm(N, generator=generator)
    for index in islice(order.to(images.device).split(batch_size), skip, None):
        yield to_model(images[part(index) if part else index])


def at_a_time(images: ImageSet) -> int:
    """How many images to evaluate at once: as many as have the pixels of 500 of 32×32."""
    return max(1, 500 * 32 * 32 // images.images[0, 0].numel())


def best_device(name: str | None = None) -> torch.device:
    """The named device; without a name that in DCAE_DEVICE, else CUDA, else Apple's MPS, else the CPU. ValueError if it is not there."""
    chosen = asked_device(name) or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:         # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {chosen!r}{'' if name else ' of DCAE_DEVICE'} cannot be used ({reason}); name another, or none for the best") from error


# ---- the embedded sample


def _load_sample() -> Splits:
    """Each sheet holds one class, in rows; the sets take the classes in turn, so that image i is of class i % 10."""
    folder = resource("sample")
    try:
        record = json.loads((folder / "sample.json").read_text())
        sets = []
        for split in ("train", "test"):
            sheets = np.stack([_tiles(folder / f"{split}-{name}.png") for name in CLASSES])
            images = np.ascontiguousarray(sheets.swapaxes(0, 1).reshape(-1, 32, 32, 3))
            labels = torch.arange(len(CLASSES)).repeat(len(images) // len(CLASSES))
            sets.append(_image_set(images, labels, f"sample {split}"))
            if sets[-1].sha256 != record[split]["sha256"]:
                raise DataError(f"the {split} sheets in {folder} were changed (SHA-256 differs); restore them from git")
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise DataError(f"the embedded sample in {folder} cannot be read ({error}); install dcae_lib again") from error
    return Splits(*sets)


def _tiles(sheet: Path) -> np.ndarray:
    """A PNG sheet of 32×32 tiles → uint8 [N, 32, 32, 3], row by row."""
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    return pixels.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def _image_set(images: np.ndarray, labels: Tensor | None, name: str) -> ImageSet:
    """From uint8 [N, H, W, 3]."""
    sha256 = hashlib.sha256(images.tobytes()).hexdigest()
    return ImageSet(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), labels, name, sha256)


# ---- a folder


def _load_folder(folder: Path, size: tuple[int, int] | None, fit: str) -> Splits:
    if not folder.is_dir():
        raise DataError(f'{folder} is not a folder; load_images takes "sample", "cifar10" or a folder of images')
    files = sorted(Path(path) for path, _ in image_files(folder))
    if len(files) < 2:
        found = "one image, and two are needed" if files else f"no images ({', '.join(IMG_EXTENSIONS)})"
        raise DataError(f"{folder} holds {found}: one for training and one for the test at least")
    images = []
    for path in files:
        images.append(_read_image(path, size, fit))
        if images[-1].shape != images[0].shape:
            (h, w), (h0, w0) = images[-1].shape[:2], images[0].shape[:2]
            raise DataError(f"{path} is {h}×{w}, but {files[0]} is {h0}×{w0}; say size= to bring them to one size")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).numpy()
    array, tests, name = np.stack(images), max(1, len(files) // 10), Path(os.path.abspath(folder)).name
    return Splits(
        _image_set(array[np.sort(order[tests:])], None, f"{name} train"),
        _image_set(array[np.sort(order[:tests])], None, f"{name} test"),
    )


def image_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Every image in a folder and those within it, links followed: its path and its length in bytes. DataError for what cannot be read."""
    def refuse(error: OSError):
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable, or take it out of {folder}") from error

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(place)) in seen:       # by a link, perhaps back
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            if os.path.splitext(name)[1].lower() in IMG_EXTENSIONS:
                path = os.path.join(place, name)
                try:
                    length = os.path.getsize(path)
                except OSError as error:
                    refuse(error)
                if os.path.isfile(path):                    # a pipe would be waited for
                    yield path, length


def read_picture(
    file: str | Path | BinaryIO, name: str, most_pixels: int | None = None, background: str | None = "white"
) -> Image.Image:
    """Open what Pillow can read as RGB: upright as its EXIF orientation says, its first frame, as `in_rgb` makes it.

    Raises DataError, in one line, for what cannot be read or has more than `most_pixels` pixels. Colours of 16 bits
    lose the lower 8.
    """
    name = " ".join(name.split())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)    # a size that nothing here bounds is Pillow's to refuse
            image: Image.Image = Image.open(file, formats=FORMATS)
        with image:
            width, height = image.size
            if most_pixels and width * height > most_pixels:
                raise DataError(f"{name} is {width}×{height}; {most_pixels / 1e6:.0f} megapixels at most: scale it down first")
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            if turn is not None:                            # ImageOps.exif_transpose fails on tags that it need not read
                image = image.transpose(turn)
            return in_rgb(image, name, background)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name} is not there") from error
    except UnidentifiedImageError as error:                 # its own message names an object in memory
        raise DataError(f"{name} is not a picture, or in a format that is not known here") from error
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be read as a picture ({error})") from error


def in_rgb(image: Image.Image, name: str, background: str | None) -> Image.Image:
    """A Pillow image as RGB, on a background if it is transparent. DataError if it then has none, or if its greys have more than 8 bits."""
    if image.mode.startswith(("I", "F")):                   # Pillow would clip these to white or black
        raise DataError(f"{name} has more than 8 bits per pixel and channel; save it with 8")
    if image.has_transparency_data:
        if background is None:
            raise DataError(f"{name} is transparent, and has no background yet; name a colour for it")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _read_image(path: Path, size: tuple[int, int] | None, fit: str) -> np.ndarray:
    """uint8 [H, W, 3]."""
    image = read_picture(path, str(path))
    if size is not None:
        height, width = size
        image = ImageOps.fit(image, (width, height)) if fit == "crop" else image.resize((width, height))
    return np.asarray(image)
