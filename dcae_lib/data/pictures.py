"""Picture files: found in a folder, opened upright and in sRGB."""

import io
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from ..files import user_path
from .sets import DataError

Source = str | Path | BinaryIO | Image.Image
MAX_PIXELS = 2**26  # of one picture: bounds the memory that a file can ask for
EXTENSIONS = (*IMG_EXTENSIONS, ".avif", ".gif")
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for others (EPS) Pillow starts programs
# Everything that Pillow was seen to raise on damaged files of these formats.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError)
# EXIF orientation → what sets a picture upright; ImageOps.exif_transpose rewrites EXIF too, and fails if it is damaged.
UPRIGHT = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))


def is_own(name: str) -> bool:
    """Return whether the name of a file or folder is neither hidden nor one that systems give to copies of theirs."""
    return name not in ("@eaDir", "__MACOSX") and not (name[:1] == "." and name.strip("."))


def is_image(path: str) -> bool:
    """Return whether a path, relative to what the user named, is that of an image which the user put there."""
    return path.lower().endswith(EXTENSIONS) and all(map(is_own, path.split("/")))


def image_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the path and the length in bytes of every image in a folder and its folders, but not in links to folders.

    Raises DataError for a folder or a file that cannot be read.
    """

    def refuse(error: OSError):
        raise error

    try:
        for parent, folders, names in os.walk(folder, onerror=refuse):
            folders[:] = filter(is_own, folders)
            for name in filter(is_image, names):
                path = os.path.join(parent, name)
                yield path, os.path.getsize(path)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it") from error


def read_picture(source: Source, name: str | None = None) -> Tensor:
    """Read what `open_picture` opens as uint8 [3, H, W]."""
    return pil_to_tensor(open_picture(source, name))


def open_picture(source: Source, name: str | None = None) -> Image.Image:
    """Open a file, or take a Pillow image, upright as its EXIF orientation says, in RGB with sRGB's colours.

    Transparent pixels are put on white; of several pages or frames one is taken, with a warning; colours of 16 bits
    lose the lower 8. Raises DataError, one line that begins with the name, for what cannot be read, greys of more than
    8 bits and more than MAX_PIXELS pixels.
    """
    name = " ".join((name or str(source)).split())
    try:
        if isinstance(source, Image.Image):
            return _in_srgb(_upright(source, name), name)
        file = user_path(source) if isinstance(source, str | Path) else source
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image: Image.Image = Image.open(file, formats=FORMATS)
        with image:
            return _in_srgb(_upright(image, name), name)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name} is not there") from error
    except UnidentifiedImageError as error:  # its own message shows an object in memory
        raise DataError(f"{name} is not a picture, or in a format that is not known here") from error
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be read as a picture ({error})") from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{name} is {width}×{height}; {MAX_PIXELS / 1e6:.0f} megapixels at most: scale it down")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: other views of the same picture
        warnings.warn(f"{name} has several pages or frames; only one is taken", stacklevel=2)
    image.load()  # Pillow turns a TIFF here, and drops its orientation
    transpose = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if transpose is None else image.transpose(transpose)


def _in_srgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white or black
        raise DataError(f"{name} has more than 8 bits per pixel and channel; save it with 8")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    if profile:
        image = _converted(image, profile, name)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _converted(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert colours from an ICC profile to sRGB; those that are in sRGB stay as they are."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "RGBA" and source.profile.xcolor_space.strip() == "RGB":  # a grey picture, or a palette
            image = image.convert("RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"{name} has a colour profile that cannot be used ({error}); it is taken for sRGB", stacklevel=2)
        return image


def pixel_sizes(name: str, given) -> tuple[int, ...]:
    """Return a side in pixels, or several, as a tuple. ValueError, with the argument's name, unless whole and ≥ 1."""
    sizes = np.ravel(given).tolist()
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"{name} must be in whole pixels, 1 or more, got {given!r}")
    return tuple(sizes)
