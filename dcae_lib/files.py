"""Where the files that belong to the package lie, and how a file is written so that none is ever half there."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None

# Packed into a wheel by pyproject.toml, as dcae_lib/shipped/<name>.
IN_CLONE = {
    "sample": "data/sample",
    "photos": "data/photos",
    "recorded": "results/full",
    "codec_weights": "results/codec",
    "runs": "results/runs",
    "bench": "results/bench",
}


def resource(name: str) -> Path:
    """The folder of the embedded "sample" or "photos", of the "recorded" 40-epoch run, of the "codec_weights",
    of the other "runs", or of what bench/ measured."""
    return CLONE / IN_CLONE[name] if CLONE else PACKAGE / "shipped" / name


def write_whole(files: dict[Path, bytes]) -> None:
    """Write files so that each is at every moment, even if the power fails, the old one or the new one, whole.

    None is replaced before all are written: if the disk is full, all stay as they were.
    """
    partials = {path: path.with_name(f"{path.name}.{os.getpid()}.partial") for path in files}
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
