"""Picture files: found in a folder, opened upright and in sRGB."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from .sets import DataError

Source = str | Path | BinaryIO | Image.Image
EXTENSIONS = (*IMG_EXTENSIONS, ".avif", ".gif")
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for others (EPS) Pillow starts programs
# EXIF orientation → what sets a picture upright; ImageOps.exif_transpose rewrites EXIF too, and fails if it is damaged.
UPRIGHT = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))


def is_image(name: str) -> bool:
    """Return whether a name below a folder is that of an image, and neither hidden nor a copy that a system made."""
    hidden = (part in ("@eaDir", "__MACOSX") or (part[:1] == "." and part.strip(".")) for part in name.split("/"))
    return name.lower().endswith(EXTENSIONS) and not any(hidden)


def image_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the name below the folder, and the length in bytes, of every image in it and its folders, in any order."""
    for path in folder.rglob("*"):
        if is_image(name := path.relative_to(folder).as_posix()):
            yield name, path.stat().st_size


def read_picture(source: Source, name: str | None = None) -> Tensor:
    """Read what `open_picture` opens as uint8 [3, H, W]."""
    return pil_to_tensor(open_picture(source, name))


def open_picture(source: Source, name: str | None = None) -> Image.Image:
    """Open a file, or take a Pillow image, upright as its EXIF orientation says, in RGB with sRGB's colours.

    Transparent pixels are put on white; of several pages or frames one is taken, with a warning; colours of 16 bits
    lose the lower 8. Raises DataError, one line that begins with the name, for what cannot be read, greys of more than
    8 bits, and more pixels than Pillow takes (179 million).
    """
    name = " ".join((name or str(source)).split())
    try:
        if isinstance(source, Image.Image):
            return _upright_in_srgb(source, name)
        file = Path(source).expanduser() if isinstance(source, str | Path) else source
        with Image.open(file, formats=FORMATS) as image:
            return _upright_in_srgb(image, name)
    except UnidentifiedImageError as error:  # its own message shows an object in memory
        raise DataError(f"{name} is not a picture, or in a format that is not known here") from error
    except Exception as error:  # whatever Pillow raises on damaged files
        raise DataError(f"{name} cannot be read as a picture ({error})") from error


def _upright_in_srgb(image: Image.Image, name: str) -> Image.Image:
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: other views of the same picture
        warnings.warn(f"{name} has several pages or frames; only one is taken", stacklevel=2)
    image.load()  # Pillow turns a TIFF here, and drops its orientation
    transpose = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = image if transpose is None else image.transpose(transpose)
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white or black
        raise ValueError("more than 8 bits per pixel and channel; save it with 8")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode != "RGBA" and source.profile.xcolor_space.strip() == "RGB":  # a grey picture, or a palette
                image = image.convert("RGB")
            mode = "RGBA" if image.mode == "RGBA" else "RGB"
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
        except (ImageCms.PyCMSError, OSError) as error:
            warnings.warn(f"{name} has a colour profile that cannot be used ({error}): taken for sRGB", stacklevel=2)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def as_png(x: Tensor, **options) -> bytes:
    """Return uint8 [3, H, W] as a PNG file, with Pillow's options for it."""
    to_pil_image(x).save(file := io.BytesIO(), "PNG", **options)
    return file.getvalue()
