"""The commands `dcae compress` and `dcae decompress`: pictures to .dcae files, and back to PNG."""

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from ..data import DataError, as_png, read_picture, to_model
from ..files import write_whole
from ..metrics import psnr
from .codec import Codec


def add_commands(commands) -> None:
    """Add `compress` and `decompress` to argparse's subparsers; `options.run(options)` returns the exit status."""
    status = "exit status: 0 all files done, 1 some failed, 2 invalid arguments, 130 interrupted"
    for name, source, text in (
        ("compress", "pictures in any format that Pillow reads", "Compress pictures to .dcae files."),
        ("decompress", ".dcae files", "Decompress .dcae files to PNG."),
    ):
        parser: ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=status)
        parser.add_argument("files", nargs="+", help=source)
        parser.add_argument("--out", required=True, help="folder to write to, created if needed")
        parser.add_argument("--overwrite", action="store_true", help="replace existing files")
        parser.add_argument("--model", help="folder with the codec's weights (default: the shipped ones)")
        if name == "compress":
            parser.add_argument("--quality", type=int, default=50, metavar="0..100", help="default: %(default)s")
            effort = "1 and 2 look for fewer bytes, for half a minute or more per 512×512 pixels (default: %(default)s)"
            parser.add_argument("--effort", type=int, default=0, choices=(0, 1, 2), help=effort)
        parser.set_defaults(run=partial(_run, parser, name))


def _run(parser: ArgumentParser, name: str, options: Namespace) -> int:
    convert, suffix = (_compress, ".dcae") if name == "compress" else (_decompress, ".png")
    files, out = [Path(file).expanduser() for file in options.files], Path(options.out).expanduser()
    targets = [out / f"{file.stem}{suffix}" for file in files]
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        parser.error(f"{count} of the files would become {target}; write them to different folders")
    codec, failed = Codec.from_pretrained(options.model), 0
    out.mkdir(parents=True, exist_ok=True)
    bar = tqdm(files, unit="file", desc=name, disable=None)  # no bar unless stderr is a terminal
    for file, target in zip(bar, targets):
        try:
            done = convert(codec, file, target, options)
        except (DataError, OSError, ValueError) as error:
            failed += 1
            named = str(file) in str(error) or str(target) in str(error)
            bar.write(str(error) if named else f"{file}: {error}", file=sys.stderr)
        else:
            bar.write(done, file=sys.stdout)
    if failed:
        print(f"{failed} of {len(targets)} files failed", file=sys.stderr)
    return 1 if failed else 0


def _compress(codec: Codec, file: Path, to: Path, options: Namespace) -> str:
    """Compress a picture, decompress it again, and return a line on size and quality."""
    _check_free([to], options)
    picture = read_picture(file)
    data = codec.compress(picture, options.quality, options.effort)
    decoded = codec.decompress(data)
    write_whole({to: data})
    H, W = picture.shape[1:]
    decibel = psnr(to_model(decoded)[None], to_model(picture)[None]).item()
    return f"{to}  {W}×{H}  {len(data):,} bytes  {8 * len(data) / (H * W):.3f} bpp  {decibel:.2f} dB"


def _decompress(codec: Codec, file: Path, to: Path, options: Namespace) -> str:
    """Write a picture, or each picture of a batch, as PNG, and return a line on it."""
    images = codec.decompress(file.read_bytes())
    batch = images.ndim == 4
    names = [to.with_stem(f"{to.stem}-{k}") for k in range(len(images))] if batch else [to]
    _check_free(names, options)
    write_whole({name: as_png(image) for name, image in zip(names, images if batch else [images])})
    H, W = images.shape[-2:]
    return f"{names[0]}{f' and {len(names) - 1} more' if batch else ''}  {W}×{H}"


def _check_free(names: list[Path], options: Namespace) -> None:
    for name in names:
        if name.exists() and not options.overwrite:
            raise ValueError(f"{name} exists; --overwrite replaces it")
