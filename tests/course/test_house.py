"""The package's rooms: who imports whom, what an import loads, and how long each may be. Limits are only lowered."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "dcae_lib").rglob("*.py"))
CORE = ("rearrange", "blocks", "model", "soap", "config", "loop", "metrics", "device")
BELOW = ("files", "device", "tiles")  # foundations that import nothing of ours but each other

# Each room or module may import from these, itself included.
MAY_IMPORT = {
    "rearrange": (),
    "soap": (),
    **dict.fromkeys(BELOW, BELOW),
    "data": ("data", *BELOW),
    **dict.fromkeys(("blocks", "model", "config", "loop", "metrics"), (*CORE, "data", "files")),
    "runs": ("runs", *CORE, "data", "files"),
    "scale": ("scale", *CORE, "data", "files"),
    "plots": ("data",),
    "training": ("runs", "scale", *CORE, "data", "files"),
    "course": ("plots", "data", "files"),
    "codec": ("codec", "training", "plots", "runs", *CORE, "data", *BELOW),
    "explore": ("explore", "codec", "plots", *CORE, "data", *BELOW),
    "__main__": ("codec", "training", "runs", "scale", *CORE, "data", *BELOW),
}


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def room(path):
    """The room of a module, or the module itself at the top: dcae_lib/data/sets.py -> data."""
    return path.relative_to(ROOT / "dcae_lib").with_suffix("").parts[0]


def imports(path):
    """Rooms that a module imports, wherever in it, except for its types."""
    depth = len(path.relative_to(ROOT / "dcae_lib").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(node) for block in for_types for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            inside = (node.module or "").split(".")[0]
            if node.level < depth:
                yield room(path)
            else:
                yield from [inside] if inside else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_the_rooms_below(path):
    if path != ROOT / "dcae_lib" / "__init__.py":
        assert set(imports(path)) <= set(MAY_IMPORT[room(path)])


ABSENT = {  # modules, and what importing each must not load
    "dcae_lib": ".",
    "dcae_lib.soap": ".data .files .device .loop .codec",
    "dcae_lib.rearrange": ".data .files .device .loop .codec",
    "dcae_lib.plots": ".training .loop .soap .runs .codec .scale .explore",
    "dcae_lib.model": ".training .loop .soap .runs .codec .scale .explore",
    "dcae_lib.loop": ".training .runs .codec .scale .explore",
    "dcae_lib.training": ".codec .explore",
    "dcae_lib.codec": ".explore",
}
IMPORT = """import importlib, json, sys; loaded = {}
for name in sys.argv[1:]:
    [sys.modules.pop(other) for other in list(sys.modules) if other.startswith("dcae_lib")]
    importlib.import_module(name)
    loaded[name] = [other for other in sys.modules if other.startswith("dcae_lib.")]
print(json.dumps(loaded))"""


def test_an_import_loads_no_more_than_it_needs():
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", IMPORT, *ABSENT], cwd=ROOT))
    absent = {name: [f"dcae_lib{part}" for part in parts.split()] for name, parts in ABSENT.items()}
    assert [(name, m) for name in ABSENT for m in loaded[name] if m.startswith((*absent[name],))] == []


def test_lengths_stay_within_their_limits():
    core = [path for path in MODULES if path.parent == ROOT / "dcae_lib" and path.stem in CORE]
    assert sum(map(lines, core)) <= 1000
    assert sum(map(lines, MODULES)) <= 4500
    assert {path.name: lines(path) for path in MODULES if lines(path) > 350} == {}
    assert sum(map(lines, (ROOT / "tests").rglob("*.py"))) <= 7400


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_one_line_and_a_verb_or_a_noun(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    first = (ast.get_docstring(tree) or "").split("\n\n")[0]
    assert first and "\n" not in first
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    openings = [(node.name, (ast.get_docstring(node) or "").split(" ")[0]) for node in nodes]
    assert [name for name, word in openings if word in ("What", "Where", "Whether", "Of", "How", "Which")] == []
