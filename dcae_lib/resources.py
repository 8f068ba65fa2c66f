"""Where the files that belong to the package lie: in a clone, or inside an installed copy."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None

IN_CLONE = {"sample": "data/sample", "recorded": "results/full"}        # pyproject.toml packs these into a wheel


def resource(name: str) -> Path:
    """The folder of the embedded "sample" or of the "recorded" 40-epoch run."""
    return CLONE / IN_CLONE[name] if CLONE else PACKAGE / name
