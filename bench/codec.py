"""Measure the speed of the codec, Pillow's AVIF and WebP, in turns on one thread."""

import resource
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context

import torch
from harness import here, in_turns, one_thread, parser, photo, save, seconds
from torch import Tensor

from dcae_lib import Codec, load_images, to_model
from dcae_lib.codec.compare import decode, encode
from dcae_lib.metrics import psnr


def fastest(writers: dict[str, Callable], readers: dict[str, Callable], rounds: int) -> dict[str, tuple]:
    """Return, by codec, the seconds to write and to read in the best round, the file and what is in it."""
    files = {name: write() for name, write in writers.items()}
    reading = {name: partial(readers[name], file) for name, file in files.items()}
    there, back = in_turns(writers, rounds), in_turns(reading, rounds)
    return {name: (min(there[name]), min(back[name]), files[name], reading[name]()) for name in writers}


def speed(codec: Codec, images: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Return 32×32 images per second near 30 dB, each as a file of its own; for ours also all in one file."""
    writers = {
        "DCAE": lambda: codec.compress_each(images, 50),
        "DCAE, one file": lambda: codec.compress(images, 50),
        "AVIF": lambda: [encode("AVIF", image, 48) for image in images],
        "WebP": lambda: [encode("WebP", image, 62) for image in images],
    }
    readers = dict.fromkeys(writers, lambda files: torch.stack([decode(data) for data in files]))
    readers |= {"DCAE": lambda files: torch.stack(codec.decompress_each(files)), "DCAE, one file": codec.decompress}
    rows = {}
    for name, (there, back, _, decoded) in fastest(writers, readers, rounds).items():
        score = psnr(to_model(decoded), to_model(images)).mean().item()
        rows[name] = dict(compress=len(images) / there, decompress=len(images) / back, psnr=score)
    return rows


def one_photo(codec: Codec, x: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds for a photo of 512×512, at qualities of about as many bytes."""
    writers = {
        "DCAE": lambda: codec.compress(x, 50),
        "AVIF": lambda: encode("AVIF", x, 54),
        "WebP": lambda: encode("WebP", x, 53),
    }
    found = fastest(writers, {"DCAE": codec.decompress, "AVIF": decode, "WebP": decode}, rounds)
    return {
        name: dict(compress=there, decompress=back, bytes=len(data)) for name, (there, back, data, _) in found.items()
    }


def large() -> dict[str, float]:
    """Return seconds for 4000×3000 pixels, mirrored copies of a photo, and the process's peak memory in GiB."""
    one_thread()
    codec, x = Codec.from_pretrained(), photo("astronaut")
    x = torch.cat([x, x.flip(2)], 2).repeat(1, 6, 4)[:, :3000, :4000]
    files: list[bytes] = []
    there = seconds(lambda: files.append(codec.compress(x, 50)))
    back = seconds(lambda: codec.decompress(files[0]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return dict(compress=there, decompress=back, gib=peak)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, "codec", rounds=5).parse_args(arguments)
    one_thread()
    codec, images = Codec.from_pretrained(), load_images("sample").test.images[:250]
    record = dict(
        images=speed(codec, images, options.rounds),
        photo_512=one_photo(codec, photo("astronaut"), options.rounds),
        effort={effort: seconds(partial(codec.compress, photo("astronaut"), 50, effort)) for effort in (1, 2)},
    )
    with get_context("spawn").Pool(1) as alone:  # a process that has used no memory before
        record["photo_12_mp"] = alone.apply(large)
    save(options.out, record | here())


if __name__ == "__main__":
    main()
