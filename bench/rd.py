"""Measure rate and distortion on the test images of CIFAR-10: ours, JPEG, WebP, AVIF, JPEG XL, JPEG 2000 and a KLT.

`python bench/rd.py [part ...]` writes results/full/codec.json; without a part, all of them. Bytes are counted on files
that were written, read back and decoded; bits per pixel, PSNR and SSIM are means over images.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import chain

import imagecodecs
import matplotlib.pyplot as plt
import numpy as np
import torch
from harness import RESULTS, constant_bytes, here, join, one_thread, save
from PIL import features
from torch import Tensor

from dcae_lib import Codec, load_images, to_model
from dcae_lib.codec.compare import SETTINGS, bd_rate, decode, draw_curves, encode
from dcae_lib.metrics import psnr, ssim
from dcae_lib.plots import WIDTH, use_style
from dcae_lib.tiles import cut

OUT = RESULTS / "full" / "codec.json"
RANGE = 26.0, 34.0  # dB, of the BD-rates
ROWS, COLUMNS = 20, 25  # of a mosaic
QUALITIES = {
    "DCAE": range(0, 101, 10),
    "JPEG": (5, 10, 18, 28, 42, 58, 70, 80, 88, 94),
    "WebP": (0, 8, 24, 45, 65, 80, 89, 95),
    "AVIF": (8, 18, 26, 34, 42, 50, 58, 66, 78),
    "JPEG XL": (7, 4.5, 3, 2, 1.3, 0.9),  # distances
    "JPEG 2000": (23, 26, 29, 32, 36),  # dB
}


# ---- files


def write(name: str, image: Tensor, quality: float, **changes) -> bytes:
    """Encode uint8 [3, H, W]; `changes` to the SETTINGS of one of Pillow's codecs."""
    if name in SETTINGS:
        return encode(name, image, quality, **changes)
    pixels = image.permute(1, 2, 0).numpy()
    if name == "JPEG XL":
        return imagecodecs.jpegxl_encode(pixels, distance=quality, effort=9)
    return imagecodecs.jpeg2k_encode(pixels, level=quality, codecformat="j2k", reversible=False)


def read(name: str, data: bytes) -> Tensor:
    """Decode a file to uint8 [3, H, W]."""
    if name in SETTINGS:
        return decode(data)
    decoded = imagecodecs.jpegxl_decode(data) if name == "JPEG XL" else imagecodecs.jpeg2k_decode(data)
    return torch.from_numpy(np.ascontiguousarray(decoded)).permute(2, 0, 1)


def scores(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the PSNR and SSIM of each image: uint8 [N, 3, 32, 32] twice → [2, N]."""
    parts = [(to_model(y), to_model(x)) for y, x in zip(decoded.split(250), images.split(250))]
    return torch.cat([torch.stack([psnr(*part), ssim(*part)]) for part in parts], 1)


def round_trip(
    name: str, images: Tensor, quality: float, mosaic: bool = False, **changes
) -> tuple[list[bytes], Tensor]:
    """Return a file of each image, or one of all in a mosaic, and the scores of the decoded images."""
    one_thread()
    shown = join(images, 1, ROWS * 32, COLUMNS * 32) if mosaic else images
    files = [write(name, image, quality, **changes) for image in shown]
    decoded = torch.stack([read(name, data) for data in files])
    return files, scores(cut(decoded, 32, "constant"), images)


# ---- curves


def point(quality: float, total: float, found: Tensor, **more) -> dict:
    """Return means over images of `total` bytes, bits per pixel, and scores [2, N]."""
    size = total / found.shape[1]
    decibels, similarity = found.double().mean(1).tolist()
    return dict(quality=quality, bytes=size, bpp=8 * size / 1024, psnr=decibels, ssim=similarity) | more


def three_ways(quality: float, files: list[bytes], bare: list[bytes], found: Tensor, mosaics: tuple, **more) -> dict:
    """Return points for whole files, for files without the bytes that all share, and for mosaics."""
    constant = constant_bytes(bare)
    return dict(
        whole=point(quality, sum(map(len, files)), found, **more),
        stripped=point(quality, sum(map(len, bare)) - constant * len(bare), found, constant=constant),
        mosaic=point(quality, sum(map(len, mosaics[0])), mosaics[1]),
    )


def baseline(name: str, images: Tensor, pool: ProcessPoolExecutor) -> list[dict]:
    """Return three points for each quality of a codec."""

    def many(quality: float, size: int, **settings) -> tuple[list[bytes], Tensor]:
        parts = [pool.submit(round_trip, name, part, quality, **settings) for part in images.split(size)]
        files, found = zip(*(part.result() for part in parts))
        return list(chain.from_iterable(files)), torch.cat(found, 1)

    rows = []
    for quality in QUALITIES[name]:
        files, found = many(quality, 250)
        # A JPEG with the standard's tables is longer and holds the same picture, but more of it is constant.
        bare = many(quality, 250, optimize=False)[0] if name == "JPEG" else files
        rows.append(three_ways(quality, files, bare, found, many(quality, ROWS * COLUMNS, mosaic=True)))
        print(name, rows[-1]["stripped"], flush=True)
    return rows


def ours(images: Tensor) -> list[dict]:
    """Return the same for our codec, with batches as mosaics. `ideal`: the bytes of the model's own probabilities."""
    codec = Codec.from_pretrained()
    rows = []
    for quality in QUALITIES["DCAE"]:
        files, decoded, ideal, packed, unpacked = [], [], 0.0, [], []
        for part in images.split(ROWS * COLUMNS):
            files += codec.compress_each(part, quality)
            decoded += codec.decompress_each(files[-len(part) :])
            ideal += codec.costs(part, quality).sum().item() / 8
            packed.append(codec.compress(part, quality))
            unpacked.append(codec.decompress(packed[-1]))
        found, mosaics = scores(torch.stack(decoded), images), (packed, scores(torch.cat(unpacked), images))
        rows.append(three_ways(quality, files, files, found, mosaics, ideal=ideal / len(images)))
        print("DCAE", rows[-1]["stripped"], flush=True)
    return rows


def klt(images: Tensor, train: Tensor) -> list[dict]:
    """Return points of ideal linear transform coding: the KLT of 8×8 blocks, one step, ideal codes for coefficients."""

    def blocks(images: Tensor) -> Tensor:
        return cut(images, 8, "constant").flatten(1).float()

    known = blocks(train)
    mean = known.mean(0)
    basis = torch.linalg.eigh(torch.cov((known - mean).T.double())).eigenvectors.float()
    coefficients = (blocks(images) - mean) @ basis
    points = []
    for step in (130, 100, 80, 64, 50, 40, 32, 25, 20, 16, 12, 9):
        index = (coefficients / step).round()
        bits = 0.0
        for column in index.T:
            counts = torch.unique(column, return_counts=True)[1].double()
            bits += float(-(counts * (counts / counts.sum()).log2()).sum())
        y = join(((index * step) @ basis.T + mean).view(-1, 3, 8, 8), len(images), 32, 32)
        points.append(point(step, bits / 8, scores(y.round().clamp(0, 255).to(torch.uint8), images)))
        print("KLT", points[-1], flush=True)
    return points


def bd_rates(curves: dict) -> dict[str, dict[str, float]]:
    """Compare ours with each codec and way of counting; the KLT, which has no files, with stripped ones."""
    rates: dict[str, dict[str, float]] = {way: {} for way in ("whole", "stripped", "mosaic")}
    for way in rates:
        curve_of = {name: curve.get(way) for name, curve in curves.items() if name != "KLT"}
        if way == "stripped":
            curve_of["KLT"] = curves.get("KLT")
        points = {name: [(p["bpp"], p["psnr"]) for p in curve] for name, curve in curve_of.items() if curve}
        own = points.pop("DCAE", [])
        for name, theirs in points.items() if own else ():
            try:
                rates[way][name] = bd_rate(own, theirs, *RANGE)
            except ValueError as error:
                print(f"{name}, {way}: {error}")
    return rates


def main(arguments: list[str] | None = None) -> None:
    everything = [*QUALITIES, "KLT"]
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(everything)}", default=everything)
    command.add_argument("--images", type=int, default=10_000, help="fewer, for a trial run; then nothing is written")
    options = command.parse_args(arguments)
    one_thread()
    codecs = {name: version(name) for name in ("pillow", "constriction", "imagecodecs")}
    codecs |= {name: features.version(name) for name in ("jpg", "webp", "avif")}
    train, test = load_images("cifar10")
    images = test.images[: options.images]
    curves = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.parts:
            if name == "KLT":
                curves[name] = klt(images, train.images)
            else:
                rows = ours(images) if name == "DCAE" else baseline(name, images, pool)
                curves[name] = {way: [row[way] for row in rows] for way in rows[0]}
    # Read only now: other parts may have been measured meanwhile.
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(curves={}, provenance={})
    record["curves"] |= curves
    record["provenance"] |= dict.fromkeys(curves, here() | dict(codecs=codecs))
    record |= dict(images=len(images), data=test.sha256, range=RANGE, bd_rate=bd_rates(record["curves"]))
    print(json.dumps(record["bd_rate"], indent=1))
    if options.images == 10_000:
        save(OUT, record)
        use_style()
        fig, ax = plt.subplots(figsize=(WIDTH, 4))
        draw_curves(ax, record)
        fig.savefig(OUT.with_suffix(".png"))


if __name__ == "__main__":
    main()
