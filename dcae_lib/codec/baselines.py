"""JPEG, WebP and AVIF through Pillow: a picture as the bytes of a file, and back."""

import io

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..data import read_picture

# The settings with the best rate at 32×32 pixels short of hours of search; colour at full resolution where possible.
SETTINGS = {
    "JPEG": dict(format="JPEG", subsampling="4:4:4", optimize=True),
    "WebP": dict(format="WEBP", method=6),
    "AVIF": dict(format="AVIF", subsampling="4:4:4", speed=4, max_threads=1),
}


def encode(name: str, image: Tensor, quality: int, **changes) -> bytes:
    """Encode uint8 [3, H, W] as a "JPEG", "WebP" or "AVIF" file at one of Pillow's qualities, 0 to 100.

    `changes` update its SETTINGS.
    """
    file = io.BytesIO()
    to_pil_image(image).save(file, quality=quality, **SETTINGS[name] | changes)
    return file.getvalue()


def decode(data: bytes) -> Tensor:
    """Decode a file to uint8 [3, H, W]."""
    return read_picture(io.BytesIO(data))
