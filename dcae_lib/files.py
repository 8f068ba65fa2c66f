"""The package's own files, and files written whole or not at all."""

import os
import secrets
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CLONE = None if (PACKAGE / "shipped").is_dir() else PACKAGE.parent

IN_CLONE = {  # in a wheel, pyproject.toml packs them as dcae_lib/shipped/<name>
    "sample": "data/sample",
    "photos": "data/photos",
    "recorded": "results/full",  # the 40-epoch run
    "photographs": "results/codec/photographs",  # the codec's networks
    "thumbnails": "results/codec/thumbnails",
    "runs": "results/runs",  # other runs
    "bench": "results/bench",  # what bench/ measured
}


def resource(name: str) -> Path:
    """Return the folder of one of the names in IN_CLONE."""
    return CLONE / IN_CLONE[name] if CLONE else PACKAGE / "shipped" / name


def write_whole(files: dict[Path, bytes]) -> None:
    """Replace files: each is the old or the new one even if the power fails, and all stay old if the disk is full."""
    partials = {path: path.with_name(f".{secrets.token_hex(8)}.partial") for path in files}
    try:
        for path, data in files.items():
            with open(partials[path], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
