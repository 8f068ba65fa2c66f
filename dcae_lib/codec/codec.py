"""`Codec`: images to bytes and back."""

import hashlib
import json
from collections import defaultdict
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data import open_picture, to_model, to_uint8
from ..tiles import piecewise
from . import coder
from .bitstream import Header, check_size, pack, unpack
from .context import QUALITIES
from .integer import MAX_LATENT, IntegerContext
from .model import RateModel
from .refine import STEPS, refine

ImageLike = Tensor | np.ndarray | Image.Image
PIECE = 128  # latents along the side of the squares that pass through the network: bounds its memory
MARGIN = 8  # latents around a piece that the network sees with it: more than its convolutions reach


class Codec:
    """Images to bytes and back, at a quality from 0 (fewest bytes) to 100.

    The rounded latents of the whole image are range coded with probabilities computed in integers, so bytes written on
    one machine decode on every other: to the same latents, and to the same pixels up to the rounding of floats.
    dcae_lib.codec.bitstream describes the file.
    """

    qualities = QUALITIES

    def __init__(self, model: RateModel):
        self.model, self.factor = model.eval(), model.autoencoder.factor

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "Codec":
        """Load the codec with the weights in a folder, by default the shipped ones, on the CPU.

        Raises FileNotFoundError for a missing file and ValueError for one that does not fit or is damaged.
        """
        return cls(RateModel.from_pretrained(folder))

    @property
    def identity(self) -> bytes:
        """The SHA-256 of all that coding depends on: settings, and names, types, shapes and bytes of all weights."""
        digest = hashlib.sha256(json.dumps(self.model.config, sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.digest()

    def compress(self, images: ImageLike, quality: int = 50, effort: int = 0) -> bytes:
        """Compress one image, or a batch of images of one size, to bytes.

        images: a uint8 tensor [3, H, W] or [B, 3, H, W], a uint8 array [H, W, 3] or [B, H, W, 3], or a Pillow image.
        quality: one of `codec.qualities`. effort: 1 and 2 look for fewer bytes at the same loss, for half a minute and
        two per 512×512 pixels; decoding takes as long as ever. Transparent pixels are put on white. A batch shares one
        header, checksum and coder; `compress_each` keeps its images apart. Raises ValueError for anything that cannot
        be compressed, and DataError for a Pillow image that cannot be read.
        """
        pixels, batch = as_pixels(images)
        y = self._latents(pixels, quality, effort)
        (payload,) = coder.encode(y, [len(y)], self.context(quality))
        H, W = pixels.shape[2:]
        return pack(Header(H, W, len(pixels) if batch else 0, int(quality)), payload, self.identity)

    def compress_each(self, images: Tensor | np.ndarray, quality: int = 50, effort: int = 0) -> list[bytes]:
        """Compress each image of a batch to bytes of its own, many at a time."""
        pixels, _ = as_pixels(images)
        payloads = coder.encode(self._latents(pixels, quality, effort), [1] * len(pixels), self.context(quality))
        (H, W), identity = pixels.shape[2:], self.identity
        return [pack(Header(H, W, 0, int(quality)), payload, identity) for payload in payloads]

    def decompress(self, data: bytes) -> Tensor:
        """Return the image or batch in the bytes of `compress`: uint8 [3, H, W] or [B, 3, H, W].

        Raises CorruptStream, a ValueError, for damaged bytes, and ValueError for those of another model or version.
        """
        return self.decompress_each([data])[0]

    def decompress_each(self, data: list[bytes]) -> list[Tensor]:
        """Decompress several files, many at a time; sizes and qualities may differ."""
        identity = self.identity
        files = [unpack(bytes(file), identity) for file in data]
        groups = defaultdict(list)  # files that are decoded together
        for k, (header, _) in enumerate(files):
            groups[header.quality, header.height, header.width].append(k)
        out: dict[int, Tensor] = {}
        for (quality, H, W), members in groups.items():
            counts = [max(files[k][0].images, 1) for k in members]
            size = -(-H // self.factor), -(-W // self.factor)
            y = coder.decode([files[k][1] for k in members], counts, *size, self.context(quality))
            for k, part in zip(members, self._pixels(y, H, W, quality).split(counts)):
                out[k] = (part if files[k][0].images else part[0]).contiguous()
        return [out[k] for k in range(len(data))]

    def preview(self, images: ImageLike, quality: int = 50) -> Tensor:
        """Return what `decompress` will make of each image at this quality, without coding it: uint8 [B, 3, H, W]."""
        pixels, _ = as_pixels(images)
        H, W = pixels.shape[2:]
        return self._pixels(self._latents(pixels, quality), H, W, quality).contiguous()

    def costs(self, images: ImageLike, quality: int = 50) -> Tensor:
        """Return the cost in bits of each latent, by the tables that code it: [B, C, ⌈H/4⌉, ⌈W/4⌉]."""
        pixels, _ = as_pixels(images)
        return coder.costs(self._latents(pixels, quality), self.context(quality))

    def context(self, quality: int) -> IntegerContext:
        return IntegerContext(self.model.context, quality)

    def _latents(self, images: Tensor, quality: int, effort: int = 0) -> Tensor:
        """uint8 [B, 3, H, W], repeated beyond their edges → rounded latents [B, C, ⌈H/4⌉, ⌈W/4⌉] on the CPU."""
        if not isinstance(quality, Integral) or isinstance(quality, bool) or quality not in self.qualities:
            raise ValueError(f"quality must be a whole number from 0 to 100, got {quality!r}")
        if effort not in range(len(STEPS)):
            raise ValueError(f"effort must be 0, 1 or 2, got {effort!r}")
        q, (H, W) = self.model.log_gain.new_tensor([quality]), images.shape[2:]
        padding = 0, -W % self.factor, 0, -H % self.factor
        x = F.pad(images.float(), padding, mode="replicate").byte() if any(padding) else images
        with torch.no_grad():
            analyse = lambda part: self.model.analyse(to_model(part.to(q.device)), q)  # noqa: E731
            y = piecewise(analyse, x, PIECE * self.factor, MARGIN * self.factor).nan_to_num()
        y = refine(self.model, y, x.to(q.device), q, STEPS[effort]) if effort else y.round()
        return y.cpu().clamp(-MAX_LATENT, MAX_LATENT)

    @torch.no_grad()
    def _pixels(self, y: Tensor, H: int, W: int, quality: int) -> Tensor:
        """Rounded latents [B, C, ⌈H/4⌉, ⌈W/4⌉] → uint8 [B, 3, H, W]."""
        weight = self.model.log_gain
        q = weight.new_tensor([quality])
        synthesise = lambda part: to_uint8(self.model.synthesise(part.to(weight), q)).cpu()  # noqa: E731
        return piecewise(synthesise, y, PIECE, MARGIN)[:, :, :H, :W]


def as_pixels(images: ImageLike) -> tuple[Tensor, bool]:
    """Return uint8 [B, 3, H, W], and True for a batch. ValueError for anything that is not an image, or too large."""
    if isinstance(images, Image.Image):
        images = np.asarray(open_picture(images, "the image"))
    if not isinstance(images, Tensor | np.ndarray):
        raise ValueError(f"expected a uint8 tensor or array, or a Pillow image, got {type(images).__name__}")
    if images.dtype not in (torch.uint8, np.uint8):
        raise ValueError(f"expected uint8 pixels, got {images.dtype}; to_uint8(x) converts floats in [-1, 1]")
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images.copy())  # torch takes no negative strides and warns of read-only memory
        images = images.movedim(-1, -3) if images.ndim in (3, 4) else images
    if images.ndim not in (3, 4) or images.shape[-3] != 3 or not images.numel():
        wanted = "a tensor [3, H, W] or [B, 3, H, W], or an array [H, W, 3] or [B, H, W, 3]"
        raise ValueError(f"expected {wanted}; got shape {list(images.shape)} with channels before rows")
    batch = images.ndim == 4
    images = images if batch else images[None]
    check_size(images.shape[2], images.shape[3], len(images))
    return images, batch
