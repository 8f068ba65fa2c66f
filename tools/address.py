"""Write the repository's address wherever it is shown, or take it out: `python tools/address.py --help`."""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
HOME = "https://github.com/{home}"
COLAB = "https://colab.research.google.com/github/{home}/blob/{ref}/notebooks/"
FIELDS = {"home": r"[\w-]+/[\w.-]+", "name": r"[\w.-]+", "ref": r"[\w./-]+"}


def badge(text: str, picture: str, link: str) -> str:
    """Return a badge in Markdown."""
    return f"[![{text}]({picture})]({link})"


def workflow_badge(text: str, file: str) -> str:
    """Return the badge of a workflow."""
    return badge(text, f"{HOME}/actions/workflows/{file}/badge.svg", f"{HOME}/actions/workflows/{file}") + "\n"


def source(*lines: str) -> str:
    """Return lines of a cell as they stand in the notebook's file."""
    return "".join(f"    {json.dumps(line)},\n" for line in lines)


# By file, what it says without an address, and what it says with one. The first place that says either is rewritten.
PLACES = {
    "pyproject.toml": [
        (
            "[project.scripts]\n",
            f'[project.urls]\nRepository = "{HOME}"\nCourse = "{HOME}/tree/{{ref}}/notebooks"\n\n[project.scripts]\n',
        ),
    ],
    "CITATION.cff": [("license: MIT\n", f'license: MIT\nrepository-code: "{HOME}"\n')],
    "README.md": [
        ("\n\n", f"\n\n{workflow_badge('tests', 'ci.yml')}{workflow_badge('nightly', 'nightly.yml')}"),
        ("# clone this repository, then, in its folder:\n", f"git clone {HOME} && cd {{name}}\n"),
    ],
    "site/index.md": [
        ("**Start:** [read", f"**Start:** [open notebook 00 in Colab]({COLAB}00_quickstart.ipynb), or [read")
    ],
    "GUIDE.md": [("`pip install git+` with this repository's address behind it", f"`pip install git+{HOME}`")],
}


def of_notebook(file: str) -> list[tuple[str, str]]:
    """Return the places of a notebook: the badge under its title, and the line that installs the package."""
    install = "    %pip install -q git+"
    asking = json.dumps(install + """{input("this repository's address, https://…: ")}""", ensure_ascii=False)
    colab = badge("Open in Colab", "https://colab.research.google.com/assets/colab-badge.svg", COLAB + file)
    return [
        (source("\n"), source("\n", f"{colab}\n", "\n")),
        (asking, json.dumps(f"{install}{HOME}@{{ref}}")),
    ]


for _file in NOTEBOOKS:
    PLACES[f"notebooks/{_file}"] = of_notebook(_file)
    if _file[2] == "_":  # the appendices of a notebook share its row
        PLACES["README.md"] += [(f"(notebooks/{_file}) |", f"(notebooks/{_file}) · [Open in Colab]({COLAB}{_file}) |")]


def home_and_ref() -> tuple[str, str] | None:
    """Return what pyproject.toml says: OWNER/NAME and the branch or tag; None while it is unset."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    found = re.fullmatch(r"https://github\.com/(.+)/tree/(.+)/notebooks", urls.get("Course", ""))
    return (found[1], found[2]) if found else None


def rewritten(file: str, text: str, home: str | None, ref: str = "main") -> str:
    """Return a file's text with the address OWNER/NAME, or without one. ValueError if it has no place for it."""
    for without, with_one in PLACES[file]:
        pattern = re.escape(with_one)
        for field, characters in FIELDS.items():
            pattern = pattern.replace(re.escape(f"{{{field}}}"), characters)
        new = with_one.format(home=home, name=home.split("/")[1], ref=ref) if home else without
        place = re.search(f"{pattern}|{re.escape(without)}", text)
        if not place:
            raise ValueError(f"{file} says neither {without!r} nor {with_one!r}")
        text = text[: place.start()] + new + text[place.end() :]
    return text


def write(home: str | None, ref: str = "main") -> None:
    """Rewrite every file, all or none; bytes, because no system may change their line ends."""
    texts = {file: rewritten(file, (ROOT / file).read_bytes().decode(), home, ref) for file in PLACES}
    for file, text in texts.items():
        (ROOT / file).write_bytes(text.encode())


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the repository's address wherever it is shown.")
    parser.add_argument("home", nargs="?", metavar="OWNER/NAME", help="on GitHub; left out: print the one that is set")
    parser.add_argument("--ref", help="branch or tag that Colab opens and installs (default: main)")
    parser.add_argument("--unset", action="store_true", help="take the address out again")
    options = parser.parse_args()
    now = home_and_ref()
    home = options.home or (now[0] if now and options.ref else None)
    if options.ref and not home:
        parser.error("no address is set; name OWNER/NAME too")
    if home and not re.fullmatch(FIELDS["home"], home):
        parser.error(f"{home} is not of the form OWNER/NAME")
    if home or options.unset:
        write(None if options.unset else home, options.ref or "main")
        now = home_and_ref()
    print(f"https://github.com/{now[0]}, {now[1]}" if now else "no address is set")
    return 0


if __name__ == "__main__":
    sys.exit(main())
