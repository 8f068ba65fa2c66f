"""Our codec compared with JPEG, WebP and AVIF: the best picture within a budget of bytes, rate-distortion curves."""

import io
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..data import read_picture, to_model
from ..metrics import psnr
from ..plots import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY
from .codec import Codec

# The settings with the best rate at 32×32 pixels short of hours of search; colour at full resolution where possible.
SETTINGS = {
    "JPEG": dict(format="JPEG", subsampling="4:4:4", optimize=True),
    "WebP": dict(format="WEBP", method=6),
    "AVIF": dict(format="AVIF", subsampling="4:4:4", speed=4, max_threads=1),
}
NAMES = ("DCAE", "AVIF", "WebP", "JPEG")
STANDARD = "JPEG, standard tables"  # longer files, which share more bytes at one quality
# As many as can be prepared in half a second; steps of 4 are about ten bytes apart.
QUALITIES = {"DCAE": range(0, 101, 4), "AVIF": range(0, 101, 4), "WebP": range(101), "JPEG": range(101)}
COLORS = {"DCAE": BLUE, "AVIF": RED, "WebP": GREEN, "JPEG": ORANGE, "JPEG XL": PINK, "JPEG 2000": SKY, "KLT": GREY}
STYLES: dict[str, dict] = {"DCAE": dict(linewidth=3, zorder=3), "KLT": dict(linestyle="--")}


class Encoded(NamedTuple):
    """A file and its picture. size: the bytes that count; image: uint8 [3, H, W]; psnr: in dB."""

    name: str
    quality: int
    data: bytes
    size: int
    image: Tensor
    psnr: float


def encode(name: str, image: Tensor, quality: int, **changes) -> bytes:
    """Encode uint8 [3, H, W] as a "JPEG", "WebP" or "AVIF" file at one of Pillow's qualities, 0 to 100.

    `changes` update its SETTINGS.
    """
    file = io.BytesIO()
    to_pil_image(image).save(file, quality=quality, **SETTINGS[name] | changes)
    return file.getvalue()


def decode(data: bytes) -> Tensor:
    """Decode a file to uint8 [3, H, W]."""
    return read_picture(io.BytesIO(data))


def candidates(codec: Codec, image: Tensor) -> dict[str, list[Encoded]]:
    """Encode uint8 [3, H, W] with each codec at each of its QUALITIES, JPEG twice."""
    files = {}
    for kind in (*NAMES, STANDARD):
        name = kind.split(",")[0]
        if name == "DCAE":  # previews: decoding all files would take a second
            data = [codec.compress(image, quality) for quality in QUALITIES[name]]
            decoded = torch.cat([codec.preview(image, quality) for quality in QUALITIES[name]])
        else:
            changes = dict(optimize=False) if kind == STANDARD else {}
            data = [encode(name, image, quality, **changes) for quality in QUALITIES[name]]
            decoded = torch.stack([decode(file) for file in data])
        scores = psnr(to_model(decoded), to_model(image).expand(decoded.shape)).tolist()
        files[kind] = [Encoded(name, *row) for row in zip(QUALITIES[name], data, map(len, data), decoded, scores)]
    return files


def constants(record: dict) -> dict[str, int]:
    """Read from a record of bench/rd.py how many bytes all files of a codec share, at the quality where it is least."""
    curves = {name: record.get("curves", {}).get(name, {}).get("stripped") for name in NAMES}
    return {name: min(point["constant"] for point in curve) for name, curve in curves.items() if curve}


def counted(files: dict[str, list[Encoded]], headers: bool, constant: dict[str, int]) -> dict[str, list[Encoded]]:
    """Set the sizes that count: whole files, or without the `constant` bytes that all files of a codec share."""
    out = {}
    for name in filter(files.get, NAMES):
        shared = 0 if headers else constant.get(name, 0)
        kind = STANDARD if name == "JPEG" and shared else name
        out[name] = [file._replace(size=max(0, file.size - shared)) for file in files[kind]]
    return out


def best(files: list[Encoded], budget: int) -> Encoded | None:
    """Return the file with the highest PSNR, not always the longest, that fits into a budget of bytes, or None."""
    return max((file for file in files if file.size <= budget), key=lambda file: (file.psnr, -file.size), default=None)


def bd_rate(curve: list[tuple[float, float]], reference: list[tuple[float, float]], low: float, high: float) -> float:
    """Return the additional bits, in percent, of a codec compared with a reference of the same quality.

    A curve is a list of (bits, quality), such as bits per pixel and dB. The difference of the logarithms of the bits,
    linear between points, is averaged from quality low to high. ValueError for a curve that does not span this range.
    Bjøntegaard 2001, VCEG-M33 (who fits a cubic polynomial).
    """
    grid = np.linspace(low, high, 201)
    logs = []
    for points in (curve, reference):
        bits, quality = np.array(sorted(points, key=lambda point: point[1])).T
        if quality[0] > low or quality[-1] < high:
            raise ValueError(f"a curve from {quality[0]:.2f} to {quality[-1]:.2f} does not span {low} to {high}")
        logs.append(np.interp(grid, quality, np.log(bits)))
    return 100 * float(np.exp(np.mean(logs[0] - logs[1])) - 1)


def draw_curves(ax: Axes, record: dict, metric: str = "psnr") -> None:
    """Plot "psnr" or "ssim" against bits per pixel for each codec in a record, without the bytes that all share."""
    for name, color in COLORS.items():
        if curve := record["curves"].get(name):
            points = curve if name == "KLT" else curve["stripped"]
            bpp, values = zip(*sorted((point["bpp"], point[metric]) for point in points))
            ax.plot(bpp, values, color=color, label=name, **STYLES.get(name, dict(marker=".")))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda bpp, _: f"{bpp:g}")
    ax.set(xlabel="bits per pixel", ylabel="PSNR, dB" if metric == "psnr" else "SSIM")
    ax.legend()
