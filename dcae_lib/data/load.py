"""Load "sample", "cifar10" or a folder of images, as sets to train on and to test on."""

import os
from pathlib import Path

import torch
from PIL import ImageOps
from torchvision.transforms.functional import pil_to_tensor

from ..files import resource
from ..tiles import cut
from .cifar10 import load_cifar10
from .pictures import EXTENSIONS, image_files, open_picture, read_picture
from .sets import CLASSES, DataError, Splits, image_set


def load_images(source: str | Path = "sample", size: int | tuple[int, int] | None = None) -> Splits:
    """Load "sample" (2,000 + 500 CIFAR-10 images that come with the package), "cifar10" or a folder of images.

    The images in and below a folder, hidden ones left out, have one size, or are scaled and cropped to `size`, a side
    in pixels or (height, width). A tenth, chosen with a fixed seed, is the test set; labels are None. DataError if some
    cannot be read.
    """
    if source not in ("sample", "cifar10"):
        return _load_folder(Path(source).expanduser(), size)
    return _load_sample() if source == "sample" else load_cifar10()


def _load_sample() -> Splits:
    folder, sets = resource("sample"), []
    for split in ("train", "test"):
        # A sheet shows one class in rows of tiles; the set takes the classes in turn: image i is of class i % 10.
        sheets = [cut(read_picture(folder / f"{split}-{name}.png")[None], 32, "constant") for name in CLASSES]
        images = torch.stack(sheets, 1).flatten(0, 1)
        sets.append(image_set(images, torch.arange(len(images)) % len(CLASSES), f"sample {split}"))
    return Splits(*sets)


def _load_folder(folder: Path, size: int | tuple[int, int] | None) -> Splits:
    if not folder.is_dir():
        raise DataError(f'{folder} is not a folder; load_images takes "sample", "cifar10" or a folder of images')
    paths = sorted(folder / name for name, _ in image_files(folder))
    if len(paths) < 2:
        raise DataError(f"{folder} holds fewer than two images ({', '.join(EXTENSIONS)}): to train on and to test")
    images = []
    for path in paths:
        picture = open_picture(path)
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            picture = ImageOps.fit(picture, (width, height))
        images.append(pil_to_tensor(picture))
        if images[-1].shape != images[0].shape:
            (h, w), (h0, w0) = images[-1].shape[1:], images[0].shape[1:]
            raise DataError(f"{path} is {h}×{w}, but {paths[0]} is {h0}×{w0}; say size= to bring them to one size")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    tests, name = max(1, len(images) // 10), Path(os.path.abspath(folder)).name
    train, test = (torch.stack([images[i] for i in sorted(part)]) for part in (order[tests:], order[:tests]))
    return Splits(image_set(train, None, f"{name} train"), image_set(test, None, f"{name} test"))
