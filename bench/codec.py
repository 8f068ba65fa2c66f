"""How fast the codec is, beside Pillow's AVIF and WebP, and what it makes of photographs.

One process, one thread; the codecs take turns, and the best of their rounds counts. Writes results/bench/codec.json.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dcae_lib import Codec, load_images, to_model
from dcae_lib.codec.baselines import decode, encode
from dcae_lib.codec.codec import TILE
from dcae_lib.data import read_picture
from dcae_lib.metrics import psnr
from dcae_lib.device import keep_memory
from dcae_lib.runs.record import provenance
from dcae_lib.files import resource

OUT = Path(__file__).resolve().parent.parent / "results" / "bench" / "codec.json"
ROUNDS = 5
NEAR = dict(DCAE=50, AVIF=48, WebP=62)                      # qualities that come near 30 dB on CIFAR-10
PHOTOS = ("astronaut", "cat", "coffee")


def fastest(tasks: dict[str, Callable]) -> tuple[dict[str, float], dict]:
    """Seconds of each task in its best round, and what it returned."""
    seconds = {name: float("inf") for name in tasks}
    results = {}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            start = time.perf_counter()
            results[name] = task()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds, results


def speed(codec: Codec, images: Tensor) -> dict[str, dict[str, float]]:
    """Images of 32×32 per second, compressed and decompressed: each as a file of its own, and ours as one file too."""
    writers = {
        "DCAE": lambda: codec.compress_each(images, NEAR["DCAE"]),
        "DCAE, one file": lambda: codec.compress(images, NEAR["DCAE"]),
        "AVIF": lambda: [encode("AVIF", image, NEAR["AVIF"]) for image in images],
        "WebP": lambda: [encode("WebP", image, NEAR["WebP"]) for image in images],
    }
    there, files = fastest(writers)
    back, decoded = fastest({
        "DCAE": lambda: torch.stack(codec.decompress_each(files["DCAE"])),
        "DCAE, one file": lambda: codec.decompress(files["DCAE, one file"]),
        "AVIF": lambda: torch.stack([decode(data) for data in files["AVIF"]]),
        "WebP": lambda: torch.stack([decode(data) for data in files["WebP"]]),
    })
    return {
        name: dict(
            compress=len(images) / there[name], decompress=len(images) / back[name],
            psnr=psnr(to_model(decoded[name]), to_model(images)).mean().item(),
        )
        for name in writers
    }


def photo(name: str) -> Tensor:
    return read_picture(resource("photos") / f"{name}.webp")


def one_photo(codec: Codec, x: Tensor) -> dict[str, dict[str, float]]:
    """Seconds for a photo of 512×512, at qualities of about as many bytes."""
    there, files = fastest({"DCAE": lambda: codec.compress(x, 50), "AVIF": lambda: encode("AVIF", x, 54), "WebP": lambda: encode("WebP", x, 53)})
    back, _ = fastest({name: (lambda data=data, read=codec.decompress if name == "DCAE" else decode: read(data)) for name, data in files.items()})
    return {name: dict(compress=there[name], decompress=back[name], bytes=len(files[name])) for name in files}


def largest(name: str, x: Tensor, budget: int) -> bytes:
    """A file at the highest quality that fits, by bisection."""
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(encode(name, x, middle)) <= budget else (low, middle - 1)
    return encode(name, x, low)


def photos(codec: Codec) -> list[dict]:
    """PSNR of photographs: ours, ours with each tile in a file of its own, and what other codecs reach in as many bytes."""
    rows = []
    for name in PHOTOS:
        x = photo(name)
        for quality in (20, 40, 60, 80):
            data = codec.compress(x, quality)
            H, W = (side // TILE * TILE for side in x.shape[1:])
            tiles = x[:, :H, :W].unfold(1, TILE, TILE).unfold(2, TILE, TILE).permute(1, 2, 0, 3, 4)         # [rows, columns, 3, 32, 32]
            apart = codec.decompress(codec.compress(tiles.flatten(0, 1), quality)).view(tiles.shape)
            apart = apart.permute(2, 0, 3, 1, 4).reshape(3, H, W)
            decoded = codec.decompress(data)
            found = {"DCAE": decoded} | {other: decode(largest(other, x, len(data))) for other in ("AVIF", "WebP", "JPEG")}
            scores = {other: psnr(to_model(y)[None], to_model(x)[None]).item() for other, y in found.items()}
            crops = [psnr(to_model(y[:, :H, :W])[None], to_model(x[:, :H, :W])[None]).item() for y in (decoded, apart)]
            rows.append(dict(photo=name, quality=quality, bytes=len(data), psnr=scores, whole_tiles=crops[0], separate_tiles=crops[1]))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    keep_memory()
    codec = Codec.from_pretrained()
    images = load_images("sample").test.images[:250]
    record = dict(images=speed(codec, images), photo_512=one_photo(codec, photo("astronaut")), photos=photos(codec))
    print(json.dumps({key: record[key] for key in ("images", "photo_512")}, indent=1))
    OUT.write_text(json.dumps(record | provenance(torch.device("cpu")), indent=1) + "\n")


if __name__ == "__main__":
    main()
