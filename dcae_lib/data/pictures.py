"""Pictures from files: found in a folder, opened upright and in RGB."""

import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from .sets import DataError

MAX_PIXELS = 2**26  # of one picture: bounds the memory that a file can ask for
# How to set a picture upright, by its EXIF orientation; 1 is upright.
UPRIGHT = dict(zip(range(2, 9), (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
)))
# What is opened: by its content Pillow would also choose formats for which it starts other programs (EPS).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# All that Pillow was seen to raise on damaged files of its formats.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError)


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


def read_picture(file: str | Path | BinaryIO, name: str | None = None, background: str | None = "white") -> Tensor:
    """Read a picture as uint8 [3, H, W]: what `open_picture` opens."""
    return pil_to_tensor(open_picture(file, name, background))


def open_picture(file: str | Path | BinaryIO, name: str | None = None, background: str | None = "white") -> Image.Image:
    """Open what Pillow can read as RGB: upright as its EXIF orientation says, its first frame, as `in_rgb` makes it.

    Raises DataError, in one line, for what cannot be read or has more than MAX_PIXELS pixels. Colours of 16 bits
    lose the lower 8.
    """
    name = " ".join((name or str(file)).split())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)    # a size that nothing here bounds is Pillow's to refuse
            image: Image.Image = Image.open(file, formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{name} is {width}×{height}; {MAX_PIXELS / 1e6:.0f} megapixels at most: scale it down first")
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
