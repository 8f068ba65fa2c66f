"""Where the files that belong to the package lie: in a clone, or inside an installed copy."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None

IN_CLONE = {"sample": "data/sample", "recorded": "results/full", "bench": "results/bench"}   # packed into a wheel by pyproject.toml


def resource(name: str) -> Path:
    """The folder of the embedded "sample", of the "recorded" 40-epoch run, or of what the scripts in bench/ measured."""
    return CLONE / IN_CLONE[name] if CLONE else PACKAGE / name
