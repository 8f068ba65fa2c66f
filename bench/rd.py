"""Rate and distortion on all CIFAR-10 test images: ours, JPEG, WebP, AVIF, a KLT, and JPEG XL and JPEG 2000 where imagecodecs is.

`python bench/rd.py [part ...]` writes results/full/codec.json; without a part, all of them. Bytes are counted on files that
were made, read back and decoded; bits per pixel, PSNR and SSIM are means over images.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import features
from torch import Tensor

from dcae_lib import Codec, load_images, to_model
from dcae_lib.baselines import SETTINGS, constant_bytes, decode, encode
from dcae_lib.metrics import bd_rate, psnr, ssim
from dcae_lib.provenance import provenance

OUT = Path(__file__).resolve().parent.parent / "results" / "full" / "codec.json"
RANGE = 26.0, 34.0                                          # dB, of the BD-rates
ROWS, COLUMNS = 20, 25                                      # of a mosaic
QUALITIES = {
    "DCAE": range(0, 101, 5),
    "JPEG": (3, 5, 8, 12, 18, 25, 35, 50, 62, 72, 80, 86, 91, 95),
    "WebP": (0, 3, 7, 13, 20, 30, 42, 55, 67, 76, 83, 88, 92, 96),
    "AVIF": (5, 12, 20, 27, 34, 41, 48, 55, 62, 69, 76, 83, 90),
    "JPEG XL": (15, 10, 7, 5, 3.5, 2.5, 1.8, 1.2, 0.8),     # distances
    "JPEG 2000": (20, 22, 24, 26, 28, 30, 32, 34, 36, 38),  # dB
}


# ---- files


def jpeg_xl(image: Tensor, distance: float) -> bytes:
    import imagecodecs

    return imagecodecs.jpegxl_encode(image.permute(1, 2, 0).numpy(), distance=distance, effort=9)


def jpeg_2000(image: Tensor, decibels: float) -> bytes:
    import imagecodecs

    return imagecodecs.jpeg2k_encode(image.permute(1, 2, 0).numpy(), level=decibels, codecformat="j2k", reversible=False)


def read(name: str, data: bytes) -> Tensor:
    """uint8 [3, H, W]."""
    if name in SETTINGS:
        return decode(data)
    import imagecodecs

    decoded = imagecodecs.jpegxl_decode(data) if name == "JPEG XL" else imagecodecs.jpeg2k_decode(data)
    return torch.from_numpy(np.ascontiguousarray(decoded)).permute(2, 0, 1)


def write(name: str, image: Tensor, quality: float, **changes) -> bytes:
    if name in SETTINGS:
        return encode(name, image, quality, **changes)
    return (jpeg_xl if name == "JPEG XL" else jpeg_2000)(image, quality)


def round_trip(name: str, images: Tensor, quality: float, changes: dict) -> tuple[list[bytes], Tensor]:
    """Files of many images, and what is in them."""
    torch.set_num_threads(1)
    files = [write(name, image, quality, **changes) for image in images]
    return files, torch.stack([read(name, data) for data in files])


# ---- curves


def point(quality: float, sizes: Iterable[float], decoded: Tensor, images: Tensor, **more) -> dict:
    """Means over images: bytes, bits per pixel, PSNR and SSIM."""
    scores = [torch.cat([score(to_model(y), to_model(x)) for y, x in zip(decoded.split(1000), images.split(1000))])
              for score in (psnr, ssim)]
    size = float(np.mean(list(sizes)))
    found = dict(quality=quality, bytes=size, bpp=8 * size / 1024)
    found |= dict(zip(("psnr", "ssim"), (score.double().mean().item() for score in scores)))
    return found | more


def baseline(name: str, images: Tensor, pool: ProcessPoolExecutor) -> dict[str, list[dict]]:
    """Curves for whole files, for files without what they have in common, and for mosaics."""
    mosaics = images.view(-1, ROWS, COLUMNS, 3, 32, 32).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, ROWS * 32, COLUMNS * 32)
    found = dict(whole=[], stripped=[], mosaic=[])
    for quality in QUALITIES[name]:
        ways = [("whole", {}), ("stripped", dict(optimize=False))] if name == "JPEG" else [("whole", {})]
        for way, changes in ways:                           # a JPEG with standard tables is longer, but more of it is constant
            parts = [pool.submit(round_trip, name, part, quality, changes) for part in images.split(250)]
            files, decoded = zip(*(part.result() for part in parts))
            files, decoded = sum(files, []), torch.cat(decoded)
            sizes, constant = list(map(len, files)), constant_bytes(files)
            if way == "whole":
                found["whole"].append(point(quality, sizes, decoded, images))
        found["stripped"].append(point(quality, (size - constant for size in sizes), decoded, images, constant=constant))
        parts = [pool.submit(round_trip, name, mosaic[None], quality, {}) for mosaic in mosaics]
        files, decoded = zip(*(part.result() for part in parts))
        decoded = torch.cat(decoded).view(-1, 3, ROWS, 32, COLUMNS, 32).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 32, 32)
        found["mosaic"].append(point(quality, (len(data) / (ROWS * COLUMNS) for data, in files), decoded, images))
        print(name, *(found[way][-1] for way in found), sep="\n  ", flush=True)
    return found


def ours(images: Tensor) -> dict[str, list[dict]]:
    """The same for our codec; its mosaics are batches. `ideal`: the bytes that the model's own probabilities ask for."""
    codec = Codec.from_pretrained()
    found = dict(whole=[], stripped=[], mosaic=[])
    for quality in QUALITIES["DCAE"]:
        files, decoded, ideal = [], [], []
        for part in images.split(500):
            files += codec.compress_each(part, quality)
            decoded += codec.decompress_each(files[-len(part):])
            ideal.append(codec.costs(part, quality).sum((1, 2, 3)) / 8)
        decoded, sizes, constant = torch.stack(decoded), list(map(len, files)), constant_bytes(files)
        found["whole"].append(point(quality, sizes, decoded, images, ideal=torch.cat(ideal).mean().item()))
        found["stripped"].append(point(quality, (size - constant for size in sizes), decoded, images, constant=constant))
        batches = [codec.compress(part, quality) for part in images.split(ROWS * COLUMNS)]
        decoded = torch.cat([codec.decompress(data) for data in batches])
        found["mosaic"].append(point(quality, (len(data) / (ROWS * COLUMNS) for data in batches), decoded, images))
        print("DCAE", *(found[way][-1] for way in found), sep="\n  ", flush=True)
    return found


def patches(images: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32] → float [N·16, 192], blocks of 8×8."""
    return images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192).float()


def klt(images: Tensor, train: Tensor) -> list[dict]:
    """Linear transform coding at its best: the KLT of 8×8 blocks, one step for all, and an ideal code for each coefficient."""
    known = patches(train)
    mean = known.mean(0)
    basis = torch.linalg.eigh(torch.cov((known - mean).T.double())).eigenvectors.float()
    coefficients = (patches(images) - mean) @ basis
    found = []
    for step in (100, 80, 64, 50, 40, 32, 25, 20, 16, 12, 9):
        index = (coefficients / step).round()
        bits = 0.0
        for column in index.T:
            counts = torch.unique(column, return_counts=True)[1].double()
            bits += float(-(counts * (counts / counts.sum()).log2()).sum())
        y = (index * step) @ basis.T + mean
        y = y.view(-1, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 32, 32)
        decoded = y.round().clamp(0, 255).to(torch.uint8)
        found.append(point(step, [bits / 8 / len(images)], decoded, images))
        print("KLT", found[-1], flush=True)
    return found


def versions() -> dict[str, str]:
    """Of what codes and decodes."""
    found = {name: version(name) for name in ("pillow", "constriction")}
    found |= {name: features.version(name) for name in ("jpg", "webp", "avif")}
    return found | ({"imagecodecs": version("imagecodecs")} if find_spec("imagecodecs") else {})


def bd_rates(curves: dict) -> dict[str, dict[str, float]]:
    """Ours against each codec and way of counting; the KLT has no file, and is held against the stripped ones."""
    def pairs(points: list[dict]) -> list[tuple[float, float]]:
        return [(p["bpp"], p["psnr"]) for p in points]

    found = {way: {} for way in ("whole", "stripped", "mosaic")}
    for way, rates in found.items():
        for name, curve in curves.items():
            reference = curve if name == "KLT" and way == "stripped" else curve.get(way) if isinstance(curve, dict) else None
            if reference and name != "DCAE":
                try:
                    rates[name] = bd_rate(pairs(curves["DCAE"][way]), pairs(reference), *RANGE)
                except ValueError as error:
                    print(f"{name}, {way}: {error}")
    return found


def main(arguments: list[str] | None = None) -> None:
    parts: dict[str, Callable] = {name: baseline for name in ("JPEG", "WebP", "AVIF", "JPEG XL", "JPEG 2000")}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = [name for name in parts if name in SETTINGS or find_spec("imagecodecs")]
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of DCAE, KLT, {', '.join(parts)}", default=["DCAE", "KLT", *there])
    parser.add_argument("--images", type=int, default=10_000, help="fewer, for a try; then nothing is written")
    options = parser.parse_args(arguments)
    train, test = load_images("cifar10")
    images = test.images[: options.images]
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(curves={}, provenance={})
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.parts:
            if name == "DCAE":
                record["curves"][name] = ours(images)
            elif name == "KLT":
                record["curves"][name] = klt(images, train.images)
            else:
                record["curves"][name] = parts[name](name, images, pool)
            record["provenance"][name] = provenance(torch.device("cpu")) | dict(codecs=versions())
    record |= dict(images=len(images), data=test.sha256, range=RANGE)
    if "DCAE" in record["curves"]:
        record["bd_rate"] = bd_rates(record["curves"])
        print(json.dumps(record["bd_rate"], indent=1))
    if options.images == 10_000:
        OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
