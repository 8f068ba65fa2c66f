"""Load "sample", "cifar10" or a folder of images, as sets to train on and to test on."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..files import resource
from .cifar10 import SHA256, load_cifar10
from .pictures import image_files, open_picture, read_picture
from .sets import CLASSES, DataError, ImageSet, Splits, image_set, pixel_sizes


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
    given = pixel_sizes("size", size)
    if len(given) not in (1, 2):
        raise ValueError(f"size must be a side or (height, width), got {size}")
    return _load_folder(Path(source), (given[0], given[-1]), fit)


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
            sets.append(image_set(images, labels, f"sample {split}"))
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
        image_set(array[np.sort(order[tests:])], None, f"{name} train"),
        image_set(array[np.sort(order[:tests])], None, f"{name} test"),
    )


def _read_image(path: Path, size: tuple[int, int] | None, fit: str) -> np.ndarray:
    """uint8 [H, W, 3]."""
    image = open_picture(path)
    if size is not None:
        height, width = size
        image = ImageOps.fit(image, (width, height)) if fit == "crop" else image.resize((width, height))
    return np.asarray(image)
