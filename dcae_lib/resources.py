"""Where the files that belong to the package lie, and how a file is written so that none is ever half there."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None

# Packed into a wheel by pyproject.toml, each as a folder of that name.
IN_CLONE = {"sample": "data/sample", "recorded": "results/full", "runs": "results/runs", "bench": "results/bench"}


def resource(name: str) -> Path:
    """The folder of the embedded "sample", of the "recorded" 40-epoch run, of the other "runs", or of what bench/ measured."""
    return CLONE / IN_CLONE[name] if CLONE else PACKAGE / name


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that at every moment, even if the power fails, the old one or the new one is there, whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
