"""`Codec`: images to bytes and back."""

import hashlib
import json
from collections import defaultdict
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data import open_picture, to_model, to_uint8
from ..tiles import cut, join
from . import coder
from .bitstream import TILE, Header, check_size, pack, unpack
from .context import QUALITIES
from .integer import MAX_LATENT, IntegerContext
from .model import RateModel

ImageLike = Tensor | np.ndarray | Image.Image
BATCH = 256  # tiles that pass through the network together
SEAMLESS = 30  # below this quality, decoding tiles with an edge of their neighbours costs fewer dB than seams do


class Codec:
    """Images to bytes and back, at a quality from 0 (fewest bytes) to 100.

    An image is cut into tiles of 32×32 that the network sees one by one. Their rounded latents are range coded with
    probabilities computed in integers, so bytes written on one machine decode on every other: to the same latents,
    and to the same pixels up to the rounding of floats. dcae_lib.codec.bitstream describes the file.
    """

    qualities = QUALITIES

    def __init__(self, model: RateModel):
        self.model, self.factor = model.eval(), model.autoencoder.factor
        self.grid = TILE // self.factor  # latents along a tile's side

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

    def compress(self, images: ImageLike, quality: int = 50) -> bytes:
        """Compress one image, or a batch of images of one size, to bytes.

        images: a uint8 tensor [3, H, W] or [B, 3, H, W], a uint8 array [H, W, 3] or [B, H, W, 3], or a Pillow image.
        quality: one of `codec.qualities`. Transparent pixels are put on white. A batch shares one header, checksum and
        coder; `compress_each` keeps its images apart. Raises ValueError for anything that cannot be compressed, and
        DataError for a Pillow image that cannot be read.
        """
        pixels, batch = as_pixels(images)
        y, mask = self._latents(pixels, quality)
        (payload,) = coder.encode(y, mask, [len(y)], self.context(quality))
        H, W = pixels.shape[2:]
        return pack(Header(H, W, len(pixels) if batch else 0, int(quality)), payload, self.identity)

    def compress_each(self, images: Tensor | np.ndarray, quality: int = 50) -> list[bytes]:
        """Compress each image of a batch to bytes of its own, many at a time."""
        pixels, _ = as_pixels(images)
        y, mask = self._latents(pixels, quality)
        payloads = coder.encode(y, mask, [len(y) // len(pixels)] * len(pixels), self.context(quality))
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
            mask = self._mask(sum(counts), H, W)
            sizes = [len(mask) // sum(counts) * n for n in counts]
            y = coder.decode([files[k][1] for k in members], mask, sizes, self.context(quality))
            for k, part in zip(members, self._pixels(y, sum(counts), H, W, quality).split(counts)):
                out[k] = (part if files[k][0].images else part[0]).contiguous()
        return [out[k] for k in range(len(data))]

    def preview(self, images: ImageLike, quality: int = 50) -> Tensor:
        """Return what `decompress` will make of each image at this quality, without coding it: uint8 [B, 3, H, W]."""
        pixels, _ = as_pixels(images)
        y, _ = self._latents(pixels, quality)
        return self._pixels(y, len(pixels), pixels.shape[2], pixels.shape[3], quality).contiguous()

    def costs(self, images: ImageLike, quality: int = 50) -> Tensor:
        """Return the cost in bits of each latent, by the tables that code it: [B, C, ⌈H/4⌉, ⌈W/4⌉]."""
        pixels, _ = as_pixels(images)
        y, mask = self._latents(pixels, quality)
        context = self.context(quality)
        costs = [coder.costs(*part, context) for part in zip(y.split(BATCH), mask.split(BATCH))]
        return join(torch.cat(costs), len(pixels), *self._latent_size(*pixels.shape[2:]))

    def context(self, quality: int) -> IntegerContext:
        return IntegerContext(self.model.context, quality)

    @torch.no_grad()
    def _latents(self, images: Tensor, quality: int) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] → rounded latents [N, C, 8, 8] of all tiles and the mask of coded sites, on the CPU."""
        if not isinstance(quality, Integral) or isinstance(quality, bool) or quality not in self.qualities:
            raise ValueError(f"quality must be a whole number from 0 to 100, got {quality!r}")
        device = self.model.log_gain.device
        q = self.model.log_gain.new_tensor([quality])
        parts = tqdm(cut(images, TILE, "replicate").split(BATCH), desc="encoding", **coder.BAR)
        latents = [self.model.analyse(to_model(part.to(device)), q).cpu() for part in parts]
        y = torch.cat(latents).nan_to_num().round().clamp(-MAX_LATENT, MAX_LATENT)
        return y, self._mask(len(images), *images.shape[2:])

    @torch.no_grad()
    def _pixels(self, y: Tensor, B: int, H: int, W: int, quality: int) -> Tensor:
        """Rounded latents of all tiles [N, C, 8, 8] → uint8 [B, 3, H, W].

        Latents are repeated beyond the edges, as the encoder repeats pixels. At low qualities a tile is decoded with
        the nearest latents of its neighbours, so that no seam shows.
        """
        device = self.model.log_gain.device
        q = self.model.log_gain.new_tensor([quality])
        edge = int(quality < SEAMLESS and max(H, W) > TILE)
        inner = slice(edge * self.factor, edge * self.factor + TILE)
        parts = cut(join(y, B, *self._latent_size(H, W)), self.grid, "replicate", edge).split(BATCH)
        tiles = [to_uint8(self.model.synthesise(part.to(device), q)[:, :, inner, inner]).cpu() for part in parts]
        return join(torch.cat(tiles), B, H, W)

    def _latent_size(self, H: int, W: int) -> tuple[int, int]:
        return -(-H // self.factor), -(-W // self.factor)

    def _mask(self, B: int, H: int, W: int) -> Tensor:
        """Return the sites inside B images, tile by tile: bool [N, 8, 8]."""
        return cut(torch.ones(B, 1, *self._latent_size(H, W)), self.grid, "constant")[:, 0].bool()


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
