"""Picture files: found in a folder, opened upright and in RGB."""

import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from .sets import DataError

MAX_PIXELS = 2**26  # of one picture: bounds the memory that a file can ask for
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for others (EPS) Pillow starts programs
# Everything that Pillow was seen to raise on damaged files of these formats.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError)
# EXIF orientation → what sets a picture upright; ImageOps.exif_transpose rewrites EXIF too, and fails if it is damaged.
UPRIGHT = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))


def image_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the path and the length in bytes of every image in a folder and its folders, but not in links to folders.

    Raises DataError for a folder or a file that cannot be read.
    """

    def refuse(error: OSError):
        raise error

    try:
        for parent, _, names in os.walk(folder, onerror=refuse):
            for name in names:
                if name.lower().endswith(IMG_EXTENSIONS):
                    path = os.path.join(parent, name)
                    yield path, os.path.getsize(path)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it") from error


def read_picture(file: str | Path | BinaryIO, name: str | None = None, background: str | None = "white") -> Tensor:
    """Read what `open_picture` opens as uint8 [3, H, W]."""
    return pil_to_tensor(open_picture(file, name, background))


def open_picture(file: str | Path | BinaryIO, name: str | None = None, background: str | None = "white") -> Image.Image:
    """Open the first frame of a picture, upright as its EXIF orientation says, in RGB (see `in_rgb`).

    Raises DataError, one line that begins with the name, for what cannot be read or has more than MAX_PIXELS pixels.
    """
    name = " ".join((name or str(file)).split())
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image: Image.Image = Image.open(file, formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{name} is {width}×{height}; {MAX_PIXELS / 1e6:.0f} megapixels at most: scale it down")
            transpose = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return in_rgb(image if transpose is None else image.transpose(transpose), name, background)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name} is not there") from error
    except UnidentifiedImageError as error:  # its own message shows an object in memory
        raise DataError(f"{name} is not a picture, or in a format that is not known here") from error
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be read as a picture ({error})") from error


def in_rgb(image: Image.Image, name: str, background: str | None) -> Image.Image:
    """Convert a Pillow image to RGB, on a background if it is transparent; colours of 16 bits lose the lower 8.

    Raises DataError for greys of more than 8 bits, and for a transparent image without a background.
    """
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white or black
        raise DataError(f"{name} has more than 8 bits per pixel and channel; save it with 8")
    if image.has_transparency_data:
        if background is None:
            raise DataError(f"{name} is transparent, and has no background yet; name a colour for it")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def pixel_sizes(name: str, given) -> tuple[int, ...]:
    """Return a side in pixels, or several, as a tuple. ValueError, with the argument's name, unless whole and ≥ 1."""
    sizes = np.ravel(given).tolist()
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"{name} must be in whole pixels, 1 or more, got {given!r}")
    return tuple(sizes)
