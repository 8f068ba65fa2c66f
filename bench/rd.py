"""Rate and distortion on all CIFAR-10 test images: ours, JPEG, WebP, AVIF, a KLT, and JPEG XL and JPEG 2000 where imagecodecs is.

`python bench/rd.py [part ...]` writes results/full/codec.json; without a part, all of them. Bytes are counted on files that
were made, read back and decoded; bits per pixel, PSNR and SSIM are means over images.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import features
from torch import Tensor

from dcae_lib import Codec, load_images, to_model
from dcae_lib.codec.baselines import SETTINGS, constant_bytes, decode, encode
from dcae_lib.codec.compare import draw_curves
from dcae_lib.metrics import bd_rate, psnr, ssim
from dcae_lib.plots import WIDTH, use_style
from dcae_lib.runs.record import provenance

OUT = Path(__file__).resolve().parent.parent / "results" / "full" / "codec.json"
RANGE = 26.0, 34.0                                          # dB, of the BD-rates
ROWS, COLUMNS = 20, 25                                      # of a mosaic
QUALITIES = {
    "DCAE": range(0, 101, 10),
    "JPEG": (5, 10, 18, 28, 42, 58, 70, 80, 88, 94),
    "WebP": (0, 8, 24, 45, 65, 80, 89, 95),
    "AVIF": (8, 18, 26, 34, 42, 50, 58, 66, 78),
    "JPEG XL": (7, 4.5, 3, 2, 1.3, 0.9),                    # distances
    "JPEG 2000": (23, 26, 29, 32, 36),                      # dB
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


def scores(decoded: Tensor, images: Tensor) -> Tensor:
    """PSNR and SSIM of each image: uint8 [N, 3, 32, 32] twice → [2, N]."""
    parts = [(to_model(y), to_model(x)) for y, x in zip(decoded.split(250), images.split(250))]
    return torch.cat([torch.stack([psnr(*part), ssim(*part)]) for part in parts], 1)


def round_trip(name: str, images: Tensor, quality: float, mosaic: bool = False, **changes) -> tuple[list[bytes], Tensor]:
    """Files of many images, or one file of all in a mosaic, and the scores of what is in them."""
    torch.set_num_threads(1)
    if not mosaic:
        files = [write(name, image, quality, **changes) for image in images]
        return files, scores(torch.stack([read(name, data) for data in files]), images)
    whole = images.view(ROWS, COLUMNS, 3, 32, 32).permute(2, 0, 3, 1, 4).reshape(3, ROWS * 32, COLUMNS * 32)
    data = write(name, whole, quality, **changes)
    decoded = read(name, data).view(3, ROWS, 32, COLUMNS, 32).permute(1, 3, 0, 2, 4).reshape(-1, 3, 32, 32)
    return [data], scores(decoded, images)


# ---- curves


def point(quality: float, total: float, found: Tensor, **more) -> dict:
    """Means over images: bytes, of that many in all, bits per pixel, PSNR and SSIM."""
    size = total / found.shape[1]
    decibels, similarity = found.double().mean(1).tolist()
    return dict(quality=quality, bytes=size, bpp=8 * size / 1024, psnr=decibels, ssim=similarity) | more


def three_ways(quality: float, files: list[bytes], bare: list[bytes], found: Tensor, packed: list[bytes], found_packed: Tensor, **more):
    """Points for whole files, for files without what they have in common, and for mosaics."""
    constant = constant_bytes(bare)
    return dict(
        whole=point(quality, sum(map(len, files)), found, **more),
        stripped=point(quality, sum(map(len, bare)) - constant * len(bare), found, constant=constant),
        mosaic=point(quality, sum(map(len, packed)), found_packed),
    )


def baseline(name: str, images: Tensor, pool: ProcessPoolExecutor) -> list[dict]:
    """Three points for each quality."""

    def many(quality: float, size: int, **settings) -> tuple[list[bytes], Tensor]:
        parts = [pool.submit(round_trip, name, part, quality, **settings) for part in images.split(size)]
        files, found = zip(*(part.result() for part in parts))
        return list(chain.from_iterable(files)), torch.cat(found, 1)

    rows = []
    for quality in QUALITIES[name]:
        files, found = many(quality, 250)
        # A JPEG with the standard's tables is longer and holds the same picture, but more of it is constant.
        bare = many(quality, 250, optimize=False)[0] if name == "JPEG" else files
        rows.append(three_ways(quality, files, bare, found, *many(quality, ROWS * COLUMNS, mosaic=True)))
        print(name, *rows[-1].values(), sep="\n  ", flush=True)
    return rows


def ours(images: Tensor) -> list[dict]:
    """The same for our codec, whose mosaics are batches. `ideal`: the bytes that the model's own probabilities ask for."""
    codec = Codec.from_pretrained()
    rows = []
    for quality in QUALITIES["DCAE"]:
        files, decoded, ideal, packed, unpacked = [], [], 0.0, [], []
        for part in images.split(ROWS * COLUMNS):
            files += codec.compress_each(part, quality)
            decoded += codec.decompress_each(files[-len(part):])
            ideal += codec.costs(part, quality).sum().item() / 8
            packed.append(codec.compress(part, quality))
            unpacked.append(codec.decompress(packed[-1]))
        found, found_packed = scores(torch.stack(decoded), images), scores(torch.cat(unpacked), images)
        rows.append(three_ways(quality, files, files, found, packed, found_packed, ideal=ideal / len(images)))
        print("DCAE", *rows[-1].values(), sep="\n  ", flush=True)
    return rows


def by_way(rows: list[dict]) -> dict[str, list[dict]]:
    return {way: [row[way] for row in rows] for way in rows[0]}


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
    for step in (130, 100, 80, 64, 50, 40, 32, 25, 20, 16, 12, 9):
        index = (coefficients / step).round()
        bits = 0.0
        for column in index.T:
            counts = torch.unique(column, return_counts=True)[1].double()
            bits += float(-(counts * (counts / counts.sum()).log2()).sum())
        y = (index * step) @ basis.T + mean
        y = y.view(-1, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 32, 32)
        decoded = y.round().clamp(0, 255).to(torch.uint8)
        found.append(point(step, bits / 8, scores(decoded, images)))
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


def draw(record: dict) -> None:
    """The README's figure."""
    use_style()
    fig, ax = plt.subplots(figsize=(WIDTH, 4))
    draw_curves(ax, record)
    fig.savefig(OUT.with_suffix(".png"))


def main(arguments: list[str] | None = None) -> None:
    others = [name for name in QUALITIES if name != "DCAE" and (name in SETTINGS or find_spec("imagecodecs"))]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = ["DCAE", "KLT", *others]
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(everything)}", default=everything)
    parser.add_argument("--images", type=int, default=10_000, help="fewer, for a try; then nothing is written")
    options = parser.parse_args(arguments)
    train, test = load_images("cifar10")
    images = test.images[: options.images]
    found = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.parts:
            curve = klt(images, train.images) if name == "KLT" else by_way(ours(images) if name == "DCAE" else baseline(name, images, pool))
            found[name] = curve, provenance(torch.device("cpu")) | dict(codecs=versions())
    # Read only now: other parts may have been measured meanwhile.
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(curves={}, provenance={})
    for name, (curve, origin) in found.items():
        record["curves"][name], record["provenance"][name] = curve, origin
    record |= dict(images=len(images), data=test.sha256, range=RANGE)
    if "DCAE" in record["curves"]:
        record["bd_rate"] = bd_rates(record["curves"])
        print(json.dumps(record["bd_rate"], indent=1))
    if options.images == 10_000:
        OUT.write_text(json.dumps(record, indent=1) + "\n")
        draw(record)


if __name__ == "__main__":
    main()
