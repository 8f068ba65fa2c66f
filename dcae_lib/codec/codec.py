"""Images to bytes and back: `Codec`, and `dcae compress photos/*.png --out folder --quality 40`."""

import argparse
import hashlib
import io
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from tqdm.auto import tqdm

from . import context as entropy
from .bitstream import MOST_PIXELS, TILE, CorruptStream, Header, UnknownVersion, WrongModel, check_size, pack, unpack
from ..data import DataError, read_picture, to_model, to_uint8
from ..data.pictures import in_rgb
from .context import QUALITIES, IntegerContext
from ..metrics import psnr
from ..device import one_thread
from .model import RateModel
from ..tiles import cut, join
from ..files import write_whole

__all__ = ["Codec", "CorruptStream", "UnknownVersion", "WrongModel"]

AT_ONCE = 256                                               # tiles that go through the network together
SEAMLESS = 30                                               # below it, decoding with an edge of the neighbours loses fewer dB than seams do
LARGEST_FILE = 6 * MOST_PIXELS                              # as many latents as pixels, none of which takes more than 5 bytes


class Codec:
    """Images to bytes and back, at a quality from 0 (fewest bytes) to 100.

    An image is cut into tiles of 32×32, each of which the network sees on its own; their rounded latents are coded with
    probabilities from integers alone, so that bytes written on one machine are read on every other: to the same
    latents, and to the same pixels but for what float arithmetic rounds otherwise. dcae_lib.bitstream has the format.
    """

    qualities = QUALITIES

    def __init__(self, model: RateModel):
        self.model = model.eval()
        self.identity = identity(model)
        self.context = lru_cache(8)(lambda quality: IntegerContext(model.context, quality))
        side = TILE // model.autoencoder.factor
        self.grid, self.factor = side, model.autoencoder.factor

    def __reduce__(self) -> tuple:
        return type(self), (self.model,)                    # so that other processes can be given a codec

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "Codec":
        """The codec with the weights in a folder, on the CPU; without one, the shipped weights.

        Raises FileNotFoundError for a missing file and ValueError for one that does not fit or is damaged.
        """
        return cls(RateModel.from_pretrained(folder))

    def compress(
        self,
        images: Tensor | np.ndarray | Image.Image,
        quality: int = 50,
        background: str | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> bytes:
        """One image, or a batch of one size, as bytes.

        images: a uint8 tensor [3, H, W] or [B, 3, H, W], a uint8 array [H, W, 3] or [B, H, W, 3], or a Pillow image.
        quality: of `codec.qualities`. background: a colour for what is transparent; without one, a transparent image is
        refused. progress: told the share that is done. A batch shares header, checksum and the coder's end; to have its
        images apart, there is `compress_each`. ValueError for what cannot be compressed.
        """
        images, batch = as_pixels(images, background)
        y, inside = self._latents(images, self._checked(quality), progress)
        payload, = entropy.encode(y, inside, [len(y)], self.context(quality))
        H, W = images.shape[2:]
        return pack(Header(H, W, len(images) if batch else 0, quality), payload, self.identity)

    def decompress(self, data: bytes, progress: Callable[[float], None] | None = None) -> Tensor:
        """The image, or the batch, that `compress` was given: uint8 [3, H, W] or [B, 3, H, W].

        Raises CorruptStream, WrongModel or UnknownVersion, all of them ValueErrors, for bytes that it cannot have been.
        """
        image, = self._decompressed([data], progress)
        return image

    def compress_each(self, images: Tensor | np.ndarray, quality: int = 50) -> list[bytes]:
        """Each image of a batch as bytes of its own: what `compress` makes of it, many at a time."""
        images, _ = as_pixels(images, None)
        y, inside = self._latents(images, self._checked(quality))
        tiles = len(y) // len(images)
        payloads = entropy.encode(y, inside, [tiles] * len(images), self.context(quality))
        H, W = images.shape[2:]
        return [pack(Header(H, W, 0, quality), payload, self.identity) for payload in payloads]

    def decompress_each(self, data: list[bytes]) -> list[Tensor]:
        """What `decompress` makes of each of them, many at a time: sizes and qualities may differ."""
        return self._decompressed(data)

    def preview(self, images: Tensor | np.ndarray | Image.Image, quality: int = 50) -> Tensor:
        """What `decompress` will make of each image at this quality, without its bytes: uint8 [B, 3, H, W]."""
        images, _ = as_pixels(images, None)
        y, _ = self._latents(images, self._checked(quality))
        H, W = images.shape[2:]
        return self._pixels(join(y, len(images), *self._sites(images)), quality)[:, :, :H, :W].contiguous()

    @torch.no_grad()
    def costs(self, images: Tensor | np.ndarray | Image.Image, quality: int = 50) -> Tensor:
        """What each latent costs in bits, by the tables that code it: [B, C, ⌈H/4⌉, ⌈W/4⌉]."""
        images, _ = as_pixels(images, None)
        y, inside = self._latents(images, self._checked(quality))
        bits = torch.cat([entropy.costs(*part, self.context(quality)) for part in zip(y.split(AT_ONCE), inside.split(AT_ONCE))])
        return join(bits, len(images), *self._sites(images))

    # ---- between pixels, latents and bytes

    @torch.no_grad()
    def _latents(self, images: Tensor, quality: int, progress=None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] → rounded latents [N, C, 8, 8] of all tiles, and the sites to code [N, 8, 8], on the CPU."""
        tiles = cut(images, TILE, "replicate")
        device = self.model.log_gain.device
        latents = []
        for part in tiles.split(AT_ONCE):
            latents.append(self.model.analyse(to_model(part.to(device)), torch.full((len(part),), float(quality), device=device)))
            if progress:
                progress(min(1.0, len(latents) * AT_ONCE / len(tiles)))
        y = torch.cat(latents).cpu().nan_to_num().round().clamp(-entropy.LARGEST, entropy.LARGEST)
        inside = cut(torch.ones(len(images), 1, *self._sites(images)), self.grid, "constant")[:, 0].bool()
        return y * inside[:, None], inside

    @torch.no_grad()
    def _pixels(self, y: Tensor, quality: int) -> Tensor:
        """Rounded latents [B, C, h, w] of whole images → uint8 [B, 3, h·4, w·4]; as the encoder repeated pixels, latents are.

        At low qualities a tile is decoded together with its neighbours' nearest latents, so that no seam shows.
        """
        device = self.model.log_gain.device
        edge = int(quality < SEAMLESS and max(y.shape[2:]) > self.grid)
        inner = slice(edge * self.factor, edge * self.factor + TILE)
        tiles = []
        for part in cut(y, self.grid, "replicate", edge).split(AT_ONCE):
            pixels = self.model.synthesise(part.to(device), torch.full((len(part),), float(quality), device=device))
            tiles.append(to_uint8(pixels[:, :, inner, inner]).cpu())
        return join(torch.cat(tiles), len(y), y.shape[2] * self.factor, y.shape[3] * self.factor)

    def _decompressed(self, data: list[bytes], progress=None) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        alike = defaultdict(list)                           # what can be decoded together
        for k, stream in enumerate(data):
            header, payload = unpack(bytes(stream), self.identity)
            alike[header.quality, header.height, header.width].append((k, header.images, payload))
        for (quality, H, W), streams in alike.items():
            numbers, counts, payloads = zip(*streams)
            images = [max(count, 1) for count in counts]    # of each stream
            h, w = -(-H // self.factor), -(-W // self.factor)
            inside = cut(torch.ones(sum(images), 1, h, w), self.grid, "constant")[:, 0].bool()
            sizes = [len(inside) // sum(images) * n for n in images]
            with one_thread():                              # a site of a few tiles is too little to share
                y = entropy.decode(payloads, inside, sizes, self.context(quality), progress)
            pixels = self._pixels(join(y, sum(images), h, w), quality)[:, :, :H, :W]
            for k, count, part in zip(numbers, counts, pixels.split(images)):
                found[k] = (part if count else part[0]).contiguous()
        return [found[k] for k in range(len(data))]

    def _sites(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of latents that cover an image."""
        return tuple(-(-side // self.factor) for side in images.shape[2:])

    def _checked(self, quality: int) -> int:
        if not isinstance(quality, Integral) or isinstance(quality, bool) or quality not in self.qualities:
            raise ValueError(f"quality must be a whole number from 0 to 100, got {quality!r}")
        return int(quality)


def identity(model: RateModel) -> bytes:
    """The SHA-256 of all that coding depends on: the settings, and names, shapes and bytes of the weights and tables."""
    found = hashlib.sha256(json.dumps(model.config, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.digest()


def as_pixels(images: Tensor | np.ndarray | Image.Image, background: str | None) -> tuple[Tensor, bool]:
    """uint8 [B, 3, H, W], and whether that was a batch. ValueError for what is no image, or holds too many pixels."""
    if isinstance(images, Image.Image):
        try:
            images = np.asarray(in_rgb(images, "the image", background))
        except DataError as error:
            raise ValueError(str(error)) from error
    if not isinstance(images, (Tensor, np.ndarray)):
        raise ValueError(f"expected a uint8 tensor or array, or a Pillow image, got {type(images).__name__}")
    if images.dtype not in (torch.uint8, np.uint8):
        raise ValueError(f"expected pixels in bytes, uint8, got {images.dtype}; to_uint8(x) makes them of floats in [-1, 1]")
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images.copy())            # a copy: torch warns of an array that cannot be written to
        images = images.movedim(-1, -3) if images.ndim in (3, 4) else images
    if images.ndim not in (3, 4) or images.shape[-3] != 3 or not images.numel():
        raise ValueError(
            "expected a tensor [3, H, W] or [B, 3, H, W] or an array [H, W, 3] or [B, H, W, 3], with three colours, "
            f"got one that is {list(images.shape)} with colours before rows"
        )
    batch = images.ndim == 4
    images = images if batch else images[None]
    check_size(images.shape[2], images.shape[3], len(images))
    return images, batch


# ---- dcae


def compress_file(codec: Codec, file: Path, to: Path, options, progress: Callable[[float], None]) -> str:
    """Compress one picture, read the bytes back, and say what became of it."""
    check_free([to], options.overwrite)
    picture = read_picture(file, background=options.background)
    data = codec.compress(picture, options.quality, progress=lambda share: progress(share / 2))
    again = codec.decompress(data, lambda share: progress(0.5 + share / 2))
    write_whole({to: data})
    H, W = picture.shape[1:]
    decibel = psnr(to_model(again)[None], to_model(picture)[None]).item()
    return f"{to}  {W}×{H}  {len(data):,} bytes  {8 * len(data) / (H * W):.3f} bpp  {decibel:.2f} dB"


def decompress_file(codec: Codec, file: Path, to: Path, options, progress: Callable[[float], None]) -> str:
    """Write the picture, or each picture of a batch, as PNG."""
    if file.stat().st_size > LARGEST_FILE:
        raise CorruptStream(f"{file} has {file.stat().st_size:,} bytes, more than any that the codec writes")
    images = codec.decompress(file.read_bytes(), progress)
    single = images.ndim == 3
    names = [to] if single else [to.with_stem(f"{to.stem}-{k}") for k in range(len(images))]
    check_free(names, options.overwrite)
    if written := options.written.intersection(names):
        raise ValueError(f"{min(written)} was written by this command, from another file; give {file} a folder of its own")
    options.written.update(names)
    files = {}
    for name, image in zip(names, [images] if single else images):
        png = io.BytesIO()
        to_pil_image(image).save(png, "PNG")
        files[name] = png.getvalue()
    write_whole(files)
    H, W = images.shape[-2:]
    return f"{names[0]}{'' if single else f' and {len(names) - 1} more'}  {W}×{H}"


def check_free(names: list[Path], overwrite: bool) -> None:
    """Raise ValueError for a file that is there and may not be replaced."""
    for name in names:
        if name.exists() and not overwrite:
            raise ValueError(f"{name} is there already; --overwrite replaces it")


def main(arguments: list[str] | None = None) -> int:
    """0: all done; 1: something could not be done, and stderr says what and why; 2: the command makes no sense."""
    parser = argparse.ArgumentParser(
        prog="dcae",
        description="Compress pictures to .dcae files, and back to PNG. Exit status: 0 if all was done, 1 if some was not, "
        "2 for a command that makes no sense.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, explanation in (("compress", "pictures in any format that Pillow reads"), ("decompress", ".dcae files")):
        command = commands.add_parser(name, description=f"{name} files into a folder")
        command.add_argument("files", nargs="+", type=Path, help=explanation)
        command.add_argument("--out", required=True, type=Path, help="folder to write to; made if needed")
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
        command.add_argument("--model", type=Path, help="folder with the codec's weights (default: the shipped ones)")
        if name == "compress":
            command.add_argument("--quality", type=int, default=50, metavar="0..100", help="default: %(default)s")
            command.add_argument("--background", help="colour to put under transparent pictures, such as white or #202020")
    options = parser.parse_args(arguments)
    suffix, do = (".dcae", compress_file) if options.command == "compress" else (".png", decompress_file)
    for file in options.files:
        if not file.name:
            parser.error(f"{file} is a folder; name the files in it")
    targets = [options.out / file.with_suffix(suffix).name for file in options.files]
    times = Counter(targets)
    for file, target in zip(options.files, targets):
        if times[target] > 1:
            parser.error(f"more than one of the files would become {target}, {file} among them; give them folders of their own")
    if options.command == "compress":
        if options.quality not in QUALITIES:
            parser.error(f"--quality must be from 0 to 100, got {options.quality}")
        if options.background is not None:
            try:
                *_, alpha = (*ImageColor.getrgb(options.background), 255)[:4]
            except ValueError as error:
                parser.error(f"--background: {error}")
            if alpha < 255:
                parser.error(f"--background: {options.background} is transparent itself")
    try:
        codec = Codec.from_pretrained(options.model)
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    options.written, failed = set(), 0                      # a batch makes more names than its own
    with tqdm(total=len(options.files), unit="file", desc=options.command, disable=None) as bar:    # none where stderr is no terminal
        for k, (file, target) in enumerate(zip(options.files, targets)):

            def progress(share: float, k: int = k) -> None:
                bar.update(k + share - bar.n)

            try:
                line = do(codec, file, target, options, progress)
                bar.write(line, file=sys.stdout)
            except (DataError, OSError, ValueError) as error:
                failed += 1
                message = str(error)
                bar.write(message if str(file) in message or str(target) in message else f"{file}: {message}", file=sys.stderr)
            except KeyboardInterrupt:
                bar.write("interrupted; what was written is whole", file=sys.stderr)
                return 130
            progress(1.0)
    if failed:
        print(f"{failed} of {len(options.files)} files could not be done", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
