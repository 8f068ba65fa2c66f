"""Measure rate and distortion on photographs that no training saw: ours at each effort, AVIF, WebP and JPEG.

`python bench/photographs.py [part ...]` writes results/bench/photographs.json; without a part, all of them. Bytes are
those of whole files, which were written, read back and decoded. data/get_photos.py fetches the photographs.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from harness import PHOTOS, RESULTS, here, join, one_thread, parser, photo, save
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim
from torchvision.transforms.functional import center_crop, pil_to_tensor
from tqdm import tqdm

from dcae_lib import Codec, plots, to_model
from dcae_lib.codec.compare import bd_rate, decode, encode
from dcae_lib.codec.refine import STEPS
from dcae_lib.metrics import psnr, ssim
from dcae_lib.tiles import cut

FOLDER = RESULTS.parent / "data" / "photographs" / "test"
SIDE = 768  # pixels of the longer side on which rate and distortion are measured
RANGE = 26.0, 36.0  # dB, of the BD-rates, or what of it both curves span
QUALITIES = {"AVIF": range(4, 92, 8), "WebP": range(0, 98, 7), "JPEG": range(3, 96, 8)}
EFFORT_QUALITIES = range(15, 91, 25)  # of ours at efforts 1 and 2, which take minutes each
METRICS = "psnr", "ms_ssim"
SIDES = 64, 128, 256, 512, 1024  # of the squares that show whether the size matters; 1024: 512×1024 in one piece
QUALITY = 40  # of those
RATES = 0.15, 0.3, 0.6  # bits per pixel, of the gallery
SHOWN = {  # photographs of the gallery, and the upper left corner of the square that is enlarged
    "astronaut": (60, 160),
    "cat": (60, 130),
    "Kleiber": (110, 230),
    "BytheWater": (280, 300),
    "Picture_1A": (200, 100),
}
GALLERY = RESULTS / "full" / "photographs.webp"


def photographs() -> dict[str, Tensor]:
    """Return the test photographs and those of the course, by name: uint8 [3, H, W]."""
    found = {name: photo(name) for name in PHOTOS}
    for path in sorted(FOLDER.glob("*.png")):
        image = Image.open(path)
        size = [round(length * SIDE / max(image.size)) for length in image.size]
        found[path.stem] = pil_to_tensor(image.resize(size, Image.Resampling.LANCZOS))
    return found


def point(x: Tensor, quality: float, data: bytes, y: Tensor) -> dict[str, float]:
    """Return bits per pixel and the scores of a decoded picture."""
    pair = [to_model(part)[None] for part in (y, x)]
    wide = ms_ssim(*((part + 1) / 2 for part in pair), data_range=1.0).item()
    scores = dict(psnr=psnr(*pair).item(), ssim=ssim(*pair).item(), ms_ssim=wide)
    return dict(quality=quality, bytes=len(data), bpp=8 * len(data) / x[0].numel(), **scores)


def curve(x: Tensor, qualities: Iterable[int], write: Callable, read: Callable) -> list[dict]:
    """Return a point for each quality: write(picture, quality) → bytes, read(bytes) → picture."""
    return [point(x, q, data := write(x, q), read(data)) for q in qualities]


def on_all_cores(of: Callable[[Tensor], dict]) -> dict[str, dict]:
    """Return {photograph: of(photograph)}, computed for a photograph per core at a time."""
    pictures = photographs()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(pictures, tqdm(pool.map(of, pictures.values()), total=len(pictures))))


def curves(codec: Codec) -> dict[str, dict[str, list[dict]]]:
    """Return the curve of each photograph with each codec: {photograph: {codec: points}}."""

    def curves_of(x: Tensor) -> dict[str, list[dict]]:
        ours = {"DCAE 0": curve(x, range(0, 101, 10), codec.compress, codec.decompress)}
        return ours | {other: curve(x, q, partial(encode, other), decode) for other, q in QUALITIES.items()}

    return on_all_cores(curves_of)


def effort(codec: Codec) -> dict[str, dict[str, list[dict]]]:
    """Return the curve of each photograph at each effort beyond 0: {photograph: {"DCAE 1": points, …}}."""

    def curves_of(x: Tensor) -> dict[str, list[dict]]:
        return {
            f"DCAE {k}": curve(x, EFFORT_QUALITIES, partial(codec.compress, effort=k), codec.decompress)
            for k in range(1, len(STEPS))
        }

    return on_all_cores(curves_of)


def bd_rates(found: dict, metric: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return {ours: {other: {photograph: percent}}}, and under "mean" the mean over photographs."""
    table: dict = {}
    for ours in sorted({codec for of in found.values() for codec in of if codec.startswith("DCAE")}):
        for other in QUALITIES:
            row = {}
            for name, of in found.items():
                pair = [[p for p in of[codec] if RANGE[0] - 3 < p["psnr"] < RANGE[1] + 3] for codec in (ours, other)]
                points = [[(p["bpp"], p[metric]) for p in part] for part in pair]
                lows, highs = zip(*((min(q for _, q in part), max(q for _, q in part)) for part in points))
                limits = RANGE if metric == "psnr" else (0.0, 1.0)
                row[name] = bd_rate(*points, max(limits[0], *lows), min(limits[1], *highs))
            table.setdefault(ours, {})[other] = row | dict(mean=fmean(row.values()))
    return table


def sizes(codec: Codec) -> list[dict]:
    """Return bits per pixel and PSNR of whole photographs, cut into squares of a side with a file for each.

    The network for photographs codes all of them, the small squares, too.
    """
    codec, rows = Codec(codec.photographs), []
    for side in SIDES:
        points = []
        for path in sorted(FOLDER.glob("*.png")):
            x = center_crop(pil_to_tensor(Image.open(path)), [512, 1024])
            files = codec.compress_each(cut(x[None], side, "constant") if side < 1024 else x[None], QUALITY)
            parts = torch.stack(codec.decompress_each(files))
            y = join(parts, 1, 512, 1024)[0] if side < 1024 else parts[0]
            points.append(point(x, QUALITY, b"".join(files), y))
        rows.append(dict(side=side) | {key: fmean(p[key] for p in points) for key in ("bpp", "psnr")})
    return rows


def gallery(codec: Codec) -> dict[str, dict]:
    """Draw squares of photographs at equal bytes, and return the bytes and PSNR of each: one figure per rate.

    Where a codec has no quality that fits, its square stays empty.
    """
    found: dict[str, dict] = {}
    for bpp in RATES:
        fig, axes = plt.subplots(len(SHOWN), 5, figsize=(10, 2.1 * len(SHOWN)), layout="constrained")
        for line, (name, (top, left)) in zip(axes, SHOWN.items()):
            x = photographs()[name]
            budget = int(bpp * x[0].numel() / 8)
            pictures = {"original": x}
            for other in ("DCAE", *QUALITIES):
                write = partial(codec.compress, x) if other == "DCAE" else partial(encode, other, x)
                fitting = bisect_right(range(101), budget, key=lambda q, write=write: len(write(q)))
                if fitting:
                    data = write(fitting - 1)
                    pictures[other] = codec.decompress(data) if other == "DCAE" else decode(data)
                    entry = point(x, fitting - 1, data, pictures[other])
                    found.setdefault(f"{bpp}", {}).setdefault(name, {})[other] = entry
            for ax, other in zip(line, ("original", "DCAE", *QUALITIES)):
                entry = found[f"{bpp}"][name].get(other)
                title = f"{other}, {entry['psnr']:.1f} dB\n{entry['bytes']:,} bytes" if entry else f"{other}: too large"
                if other in pictures:
                    plots.show_image(ax, pictures[other][:, top : top + 160, left : left + 160])
                ax.set_title(name if other == "original" else title, fontsize=9)
                ax.axis("off")
        fig.savefig(GALLERY.with_stem(f"{GALLERY.stem}-{bpp}"))
    return found


def main(arguments: list[str] | None = None) -> None:
    everything = dict(curves=curves, effort=effort, sizes=sizes, gallery=gallery)
    command = parser(__doc__, "photographs")
    command.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(everything)}", default=everything)
    options = command.parse_args(arguments)
    one_thread()
    codec = Codec.from_pretrained()
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    record["range"] = RANGE
    for name in options.parts:
        record[name] = everything[name](codec)
        both = {photo: of | record.get("effort", {}).get(photo, {}) for photo, of in record["curves"].items()}
        record["bd_rate"] = {metric: bd_rates(both, metric) for metric in METRICS}
        save(options.out, record | here())


if __name__ == "__main__":
    main()
