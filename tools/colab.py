"""Make an environment that stands for Google Colab: `python tools/colab.py FOLDER`.

It has Colab's Python and the versions of tools/colab.txt. They are installed once, into the user's caches; the
environment in FOLDER is an empty one over them, so that a package that pip replaces is found in it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tools" / "colab.txt"
HOME = "some-one/its-copy"


class NoPython(RuntimeError):
    """Raised where neither Python 3.13 nor 3.12 is found."""


class Colab(NamedTuple):
    """A Python, the folders of its own packages and of Colab's, a copy of this clone, and variables for processes."""

    python: Path
    own: Path
    colab: Path
    repository: Path
    variables: dict[str, str]


def interpreter() -> str:
    """Find Python 3.13, which Colab has, or else 3.12, on the path or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in ("3.13", "3.12"):
        for path in (shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")):
            if path and subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
                return str(path)
    raise NoPython("neither Python 3.13 nor 3.12, with venv, is on the path or in pyenv's folder")


def installed(python: str) -> Path:
    """Return the folder of an environment with Colab's versions, from the caches, or else made there."""
    key = subprocess.check_output([python, "-VV"]) + PINS.read_bytes()
    folder = Path.home() / ".cache" / "dcae" / f"colab-{hashlib.sha256(key).hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            subprocess.run([python, "-m", "venv", made], check=True)
            pip = [made / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
            subprocess.run([*pip, "--requirement", PINS], check=True)
            with suppress(OSError):  # another process was first
                made.rename(folder)
    return folder


def publish(folder: Path) -> None:
    """Copy what git tracks into a repository of its own, with the address of HOME."""
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(lambda name: name and (ROOT / name).is_file(), tracked):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, folder / "tools" / "address.py", HOME], check=True, stdout=subprocess.DEVNULL)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)


def make(folder: Path) -> Colab:
    """Make an environment in a folder. Raises NoPython, and CalledProcessError if pip fails.

    With its variables, any Jupyter runs notebooks in it, and git takes the copy of this clone for GitHub's HOME.
    """
    interpreted = interpreter()
    cached, environment = installed(interpreted), folder / "env"
    subprocess.run([interpreted, "-m", "venv", "--without-pip", environment], check=True)
    own, colab = (next((place / "lib").glob("python*/site-packages")) for place in (environment, cached))
    (own / "colab.pth").write_text(f"import site; site.addsitedir({str(colab)!r})\n")
    publish(folder / "repository")
    kernels, python = folder / "kernels", environment / "bin" / "python"
    (kernels / "kernels" / "python3").mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = json.dumps(dict(argv=argv, display_name="Colab", language="python"))
    (kernels / "kernels" / "python3" / "kernel.json").write_text(kernel)
    variables = {
        "JUPYTER_PATH": f"{kernels}{os.pathsep}{cached / 'share' / 'jupyter'}",
        "JUPYTER_CONFIG_PATH": str(cached / "etc" / "jupyter"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(folder / 'repository').as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{HOME}",
    }
    return Colab(python, own, colab, folder / "repository", variables)


if __name__ == "__main__":
    made = make(Path(sys.argv[1]).resolve())
    print(*(f"export {name}='{value}'" for name, value in made.variables.items()), sep="\n")
    print(f"{made.python} -m notebook {made.repository / 'notebooks'}")
