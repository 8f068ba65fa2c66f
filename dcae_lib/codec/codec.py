"""`Codec`: images to bytes and back."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data import open_picture, to_model, to_uint8
from ..files import resource
from ..tiles import piecewise
from . import coder
from .bitstream import Header, check_size, pack, unpack
from .context import QUALITIES
from .integer import MAX_LATENT, IntegerContext
from .model import RateModel
from .refine import STEPS, refine

ImageLike = Tensor | np.ndarray | Image.Image
PIECE = 128  # latents along the side of the squares that pass through the network: bounds its memory
SMALL = 64  # pixels of the longer side of thumbnails
MARGIN = 8  # latents around a piece that the network sees with it: more than its convolutions reach


class Codec:
    """Images to bytes and back, at a quality from 0 (fewest bytes) to 100.

    Images of at most 64 pixels a side have a network of their own, trained on thumbnails.

    The rounded latents of the whole image are range coded with probabilities computed in integers, so bytes written on
    one machine decode on every other: to the same latents, and to the same pixels up to the rounding of floats.
    dcae_lib.codec.bitstream describes the file.
    """

    qualities = QUALITIES

    def __init__(self, photographs: RateModel, thumbnails: RateModel | None = None):
        self.photographs, self.thumbnails = photographs.eval(), (thumbnails or photographs).eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "Codec":
        """Load the shipped codec, or one whose weights, for images of all sizes, are in a folder, on the CPU.

        Raises FileNotFoundError for a missing file and ValueError for one that does not fit or is damaged.
        """
        if folder is not None:
            return cls(RateModel.from_pretrained(folder))
        return cls(*(RateModel.from_pretrained(resource(name)) for name in ("photographs", "thumbnails")))

    @property
    def identity(self) -> bytes:
        """The SHA-256 of all that coding depends on: settings, and names, types, shapes and bytes of all weights."""
        digest = hashlib.sha256()
        for model in (self.photographs, self.thumbnails):
            digest.update(json.dumps(model.config, sort_keys=True).encode())
            for name, value in sorted(model.state_dict().items()):
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.digest()

    def model(self, H: int, W: int) -> RateModel:
        """Return the network for images of this size."""
        return self.thumbnails if max(H, W) <= SMALL else self.photographs

    def compress(self, images: ImageLike, quality: int = 50, effort: int = 0) -> bytes:
        """Compress one image, or a batch of images of one size, to bytes.

        images: a uint8 tensor [3, H, W] or [B, 3, H, W], a uint8 array [H, W, 3] or [B, H, W, 3], or a Pillow image.
        quality: one of `codec.qualities`. effort: 1 and 2 look for fewer bytes at the same loss, which takes half a
        minute or more per 512×512 pixels; decoding takes as long as ever. Transparent pixels are put on white. A batch
        shares one header, checksum and coder; `compress_each` keeps its images apart. Raises ValueError for anything
        that cannot be compressed, and DataError for a Pillow image that cannot be read.
        """
        pixels, batch = as_pixels(images)
        return self._files(pixels, [len(pixels)], len(pixels) if batch else 0, quality, effort)[0]

    def compress_each(self, images: Tensor | np.ndarray, quality: int = 50, effort: int = 0) -> list[bytes]:
        """Compress each image of a batch to bytes of its own, many at a time."""
        pixels, _ = as_pixels(images)
        return self._files(pixels, [1] * len(pixels), 0, quality, effort)

    def _files(self, images: Tensor, counts: list[int], batch: int, quality: int, effort: int) -> list[bytes]:
        (H, W), identity, y = images.shape[2:], self.identity, self._latents(images, quality, effort)
        payloads = coder.encode(y, counts, self.contexts(H, W, quality))
        return [pack(Header(H, W, batch, int(quality)), payload, identity) for payload in payloads]

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
            contexts = self.contexts(H, W, quality)
            y = coder.decode([files[k][1] for k in members], counts, self.sizes(H, W), contexts)
            for k, part in zip(members, self._pixels(y, H, W, quality).split(counts)):
                out[k] = (part if files[k][0].images else part[0]).contiguous()
        return [out[k] for k in range(len(data))]

    def preview(self, images: ImageLike, quality: int = 50) -> Tensor:
        """Return what `decompress` will make of each image at this quality, without coding it: uint8 [B, 3, H, W]."""
        pixels, _ = as_pixels(images)
        H, W = pixels.shape[2:]
        return self._pixels(self._latents(pixels, quality), H, W, quality).contiguous()

    def costs(self, images: ImageLike, quality: int = 50) -> Tensor:
        """Return the cost in bits of the latents at each site, by the tables that code them: [B, C, ⌈H/4⌉, ⌈W/4⌉].

        What a coarse latent costs is shared out among the sites that it stands for.
        """
        pixels, _ = as_pixels(images)
        (H, W), shared = pixels.shape[2:], torch.zeros(())
        for level in map(coder.costs, self._latents(pixels, quality), self.contexts(H, W, quality)):
            h, w = level.shape[2:]
            if shared.ndim:
                sites = F.avg_pool2d(torch.ones(1, 1, h, w), 4, ceil_mode=True, divisor_override=1)
                shared = F.interpolate(shared / sites, scale_factor=4)[:, :, :h, :w]
            shared = shared + level
        return shared

    def contexts(self, H: int, W: int, quality: int) -> list[IntegerContext]:
        """Return the context models of all levels for images of this size at a quality, in integers."""
        return [IntegerContext(context, quality) for context in self.model(H, W).contexts]  # type: ignore[arg-type]

    def sizes(self, H: int, W: int) -> list[tuple[int, int]]:
        """Return the rows and columns of latents of each level, for an image of H×W pixels."""
        model = self.model(H, W)
        factors = [model.autoencoder.factor * 4**k for k in reversed(range(len(model.contexts)))]
        return [(-(-H // factor), -(-W // factor)) for factor in factors]

    def _latents(self, images: Tensor, quality: int, effort: int = 0) -> list[Tensor]:
        """uint8 [B, 3, H, W], repeated beyond their edges → rounded latents of each level, on the CPU."""
        if quality not in self.qualities:
            raise ValueError(f"quality must be a whole number from 0 to 100, got {quality!r}")
        if effort not in range(len(STEPS)):
            raise ValueError(f"effort must be 0, 1 or 2, got {effort!r}")
        H, W = images.shape[2:]
        model = self.model(H, W)
        q, factor = model.log_gain.new_tensor([quality]), model.autoencoder.factor
        padding = 0, -W % factor, 0, -H % factor
        x = F.pad(images.float(), padding, mode="replicate").byte() if any(padding) else images
        with torch.no_grad():
            encode = lambda part: model.autoencoder.encode(to_model(part.to(q.device)))  # noqa: E731
            y = model.quantise(piecewise(encode, x, PIECE * factor, MARGIN * factor), q)
        y = refine(model, y, x.to(q.device), q, STEPS[effort]) if effort else [level.round() for level in y]
        return [level.cpu().nan_to_num().clamp(-MAX_LATENT, MAX_LATENT).contiguous() for level in y]

    @torch.no_grad()
    def _pixels(self, y: list[Tensor], H: int, W: int, quality: int) -> Tensor:
        """Rounded latents of each level → uint8 [B, 3, H, W]."""
        model = self.model(H, W)
        q = model.log_gain.new_tensor([quality])
        z = model.dequantise([level.to(q) for level in y], q)
        decode = lambda part: to_uint8(model.autoencoder.decode(part)).cpu()  # noqa: E731
        return piecewise(decode, z, PIECE, MARGIN)[:, :, :H, :W]


def as_pixels(images: ImageLike) -> tuple[Tensor, bool]:
    """Return uint8 [B, 3, H, W], and True for a batch. ValueError for anything that is not an image, or too large."""
    if isinstance(images, Image.Image):
        images = np.asarray(open_picture(images, "the image"))
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
