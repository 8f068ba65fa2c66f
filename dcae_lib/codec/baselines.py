"""The codecs that people use, through Pillow: a picture as the bytes of a file, and back."""

import io

import torch
from PIL import Image, features
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

# The settings that give each its best rate at 32×32 pixels without hours of search; colours at full resolution where it can.
SETTINGS = {
    "JPEG": dict(format="JPEG", subsampling="4:4:4", optimize=True),
    "WebP": dict(format="WEBP", method=6),
    "AVIF": dict(format="AVIF", subsampling="4:4:4", speed=4, max_threads=1),
}


def encode(name: str, image: Tensor, quality: int, **changes) -> bytes:
    """A picture, uint8 [3, H, W], as the bytes of a "JPEG", "WebP" or "AVIF" file at one of Pillow's qualities, 0 to 100.

    `changes` to its SETTINGS. ValueError for another name, or where this Pillow cannot write it.
    """
    if name not in SETTINGS:
        raise ValueError(f"the codecs are {', '.join(SETTINGS)}, got {name!r}")
    if name == "AVIF" and not features.check("avif"):
        raise ValueError("this Pillow writes no AVIF; 11.3 and later do, as installed from PyPI")
    file = io.BytesIO()
    to_pil_image(image).save(file, quality=quality, **SETTINGS[name] | changes)
    return file.getvalue()


def decode(data: bytes) -> Tensor:
    """The picture in a file, uint8 [3, H, W]."""
    with Image.open(io.BytesIO(data)) as image:
        return pil_to_tensor(image.convert("RGB"))


def constant_bytes(files: list[bytes]) -> int:
    """How many bytes of each file say nothing about its picture: those that all files have alike, as far from their start or end.

    What a collection of such files would store once.
    """
    shortest = min(map(len, files))
    front = torch.tensor([list(file[:shortest]) for file in files], dtype=torch.uint8)
    back = torch.tensor([list(file[len(file) - shortest :]) for file in files], dtype=torch.uint8)
    same_front, same_back = ((part == part[0]).all(0).long() for part in (front, back))
    # Up to some place the start is compared, and the end from there on, so that no byte counts for both.
    before = torch.cat([torch.zeros(1, dtype=torch.long), same_front.cumsum(0)])
    after = same_back.sum() - torch.cat([torch.zeros(1, dtype=torch.long), same_back.cumsum(0)])
    return int((before + after).max())
