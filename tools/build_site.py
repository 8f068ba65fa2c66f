"""Build the site of the course in build/site, or in the folder that is named: `python tools/build_site.py [OUT]`."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = "README.md GUIDE.md data/README.md notebooks/*.ipynb notebooks/*.md results/README.md"
PAGES += " results/full/*.png results/full/*.webp"


def build(out: Path) -> None:
    """Build in out, from copies of the sources: in the same places as in the repository, those of site/ at the top."""
    with tempfile.TemporaryDirectory() as folder:
        copy_sources(Path(folder))
        sphinx = ["-m", "sphinx", "-W", "--keep-going", "-q", "-d", Path(folder) / ".doctrees", "-c", ROOT / "site"]
        subprocess.run([sys.executable, *sphinx, folder, out], check=True)
    # The theme's icons are a font; the script of 1.6 MB that draws them once more is not needed.
    (out / "_static" / "scripts" / "fontawesome.js").write_text("")
    shutil.copytree(ROOT / "site" / "live", out / "live", dirs_exist_ok=True)
    subprocess.run([sys.executable, ROOT / "tools" / "export_live.py", out / "live" / "weights"], check=True)


def copy_sources(source: Path) -> None:
    """Copy the pages and what they show."""
    for path in (path for pattern in PAGES.split() for path in ROOT.glob(pattern)):
        (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, source / path.relative_to(ROOT))
    for path in (ROOT / "site").glob("*.md"):
        shutil.copy2(path, source)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site")
    build(out)
    print(f"{out}: open index.html; explorers are live when it is served: python -m http.server -d {out}")
