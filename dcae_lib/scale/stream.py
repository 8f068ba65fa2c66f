"""Images that need not fit into memory: a folder or tar shards, read and cropped while the network trains."""

import hashlib
import io
import multiprocessing
import os
import signal
import tarfile
import threading
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from ..data import DataError, Splits, image_files, image_set, open_picture, pixel_sizes, to_model
from ..data.pictures import is_image, warn_of_twins
from ..data.sets import Shard
from ..files import user_path

WORKERS = 2  # of each training process
MAX_TESTS = 500  # images that are evaluated after every epoch, kept in memory
MAX_BROKEN = 20  # unreadable images in a row after which the whole source counts as broken
Source = str | Path | Sequence[str | Path]


def stream_images(source: Source, crop: int | Sequence[int], workers: int = WORKERS) -> Splits:
    """Return Splits whose training images are read anew in every epoch, and cropped at random to a square.

    source: a folder of images; or tar shards in WebDataset's format (uncompressed; each image a member, such as
    000123.jpg): a folder of them, a list of them, or one. crop: a side in pixels, or several, of which each batch has
    one; a shorter image is scaled up. A tenth of the images, 500 at most, is the test set, in memory: the centre of
    each, at the largest side. workers: processes that read; 0 reads in this one. (Where they are not forked, on macOS,
    Windows and from Python 3.14, a program needs the guard `if __name__ == "__main__":`.)

    Memory holds about 30 bytes per image and the length of the longest name, in this process and in each worker that
    is not forked. The training images' `sha256` is of names, lengths and sides, not of pixels. An image that cannot be
    read is named in a warning, and another one taken; DataError if there are no two, or 20 in a row cannot be read.
    """
    crops = pixel_sizes("crop", crop)
    files = Files(source)
    if len(files) < 2:
        raise DataError(f"{files.name} holds fewer than two images: one to train on, one to test")
    order = torch.randperm(len(files), generator=Generator().manual_seed(0)).numpy()
    candidates, tests = iter(order[:-1]), {}
    for _ in range(max(1, min(len(files) // 10, MAX_TESTS))):
        i, image, broken = files.read_first(candidates)
        tests[i] = square(image, max(crops))
        for message in broken:
            warnings.warn(f"{message}; it is left out", stacklevel=2)
    chosen = np.sort(np.append(np.fromiter(candidates, np.int64), order[-1]))
    alike = chosen[np.isin(files.images[2, chosen], files.images[2, sorted(tests)])]  # as long as one of the tests
    with suppress(DataError):  # a file that cannot be read is named in its turn
        warn_of_twins(files.data(i) for i in (*sorted(tests), *alike))
    test = image_set(torch.stack([tests[i] for i in sorted(tests)]), None, f"{files.name} test")
    return Splits(ImageStream(files, chosen, crops, workers), test)


class Files:
    """The places of images: paths of files, and int64 [3, N], the file, first byte and length of each image."""

    def __init__(self, source: Source):
        sources = [user_path(path) for path in ([source] if isinstance(source, str | Path) else source)]
        self.name = Path(os.path.abspath(sources[0])).name if len(sources) == 1 else f"{len(sources)} shards"
        self.root = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
        shards = sorted(self.root.glob("*.tar")) if self.root else sources
        if self.root and shards and any(True for _ in image_files(self.root)):
            raise DataError(f"{source} holds images and .tar files; keep them in two folders, or name the shards")
        self.paths, self.images = _in_shards(shards, self.root) if shards or not self.root else _in_folder(self.root)

    def __len__(self) -> int:
        return self.images.shape[1]

    @property
    def sha256(self) -> str:
        """The hash of the files' names, and of each image's file, first byte and length."""
        names = self.paths if self.root else np.array([os.path.basename(path) for path in self.paths])
        return hashlib.sha256(names.tobytes() + self.images.tobytes()).hexdigest()

    def data(self, i: int) -> tuple[str, bytes]:
        """Return the name and the bytes of image i. Raises DataError that names it."""
        k, start, length = self.images[:, i]
        path = os.path.join(self.root or "", os.fsdecode(self.paths[k]))
        name = f"{path} (the image at byte {start:,})" if start else path
        try:
            with open(path, "rb") as file:
                file.seek(start)
                return name, file.read(length)
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror})") from error

    def read(self, i: int) -> Image.Image:
        """Read image i in RGB. Raises DataError that names it."""
        name, data = self.data(i)
        return open_picture(io.BytesIO(data), name)

    def read_first(self, candidates: Iterable[int]) -> tuple[int, Image.Image, list[str]]:
        """Read the first candidate that can be read: its number, its image, and why those before it cannot be read."""
        broken: list[str] = []
        for i in islice(candidates, MAX_BROKEN):
            try:
                return i, self.read(i), broken
            except DataError as error:
                broken.append(str(error))
        raise DataError(f"{len(broken)} images in a row cannot be read; the last: {(broken or ['none is left'])[-1]}")


def _in_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """List the images of a folder by name."""
    files = sorted((os.fsencode(Path(path).relative_to(folder).as_posix()), size) for path, size in image_files(folder))
    names, lengths = np.array([name for name, _ in files]), np.array([length for _, length in files], np.int64)
    return names, np.stack([np.arange(len(files)), np.zeros_like(lengths), lengths])


def _in_shards(shards: Sequence[Path], root: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """List the images of tar shards, in the order of the shards and of the members in them."""
    images = array("q")
    for k, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as tar:
                places: dict[str, tuple[int, int]] = {}  # where a hard link finds what it names
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    if member.isreg() and not member.issparse():
                        places[member.name] = member.offset_data, member.size
                    elif member.islnk() and member.linkname in places:
                        places[member.name] = places[member.linkname]
                    elif is_image(member.name):
                        warnings.warn(f"{member.name} in {shard} is no plain file; it is left out", stacklevel=4)
                for name in _of_samples(filter(is_image, places), shard):
                    images.extend((k, *places[name]))
                with open(shard, "rb") as file:  # tarfile takes a damaged header for the end
                    file.seek(tar.offset)
                    if file.read(512).strip(b"\0"):
                        raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard} is no folder, and no tar file that can be read uncompressed ({error})") from error
    names = [os.fsencode(os.path.relpath(shard, root) if root else shard) for shard in shards]
    return np.array(names), np.frombuffer(images, np.int64).reshape(-1, 3).T


def _of_samples(names: Iterable[str], shard: Path) -> list[str]:
    """Leave out what WebDataset takes for a further field of a sample: 7.mask.png next to 7.png, but not 7.of.9.png."""
    samples = {name: name[: name.index(".", name.rfind("/") + 1)] for name in names}  # it cuts at the first dot
    simple = {sample for name, sample in samples.items() if sample == name.rpartition(".")[0]}
    kept = [name for name, sample in samples.items() if sample not in simple or sample == name.rpartition(".")[0]]
    if count := len(samples) - len(kept):
        warnings.warn(f"{shard}: {count} further images of samples are left out, such as masks", stacklevel=5)
    return kept


class ImageStream(Dataset):
    """Training images that stay in their files until a batch needs them; made by `stream_images`."""

    def __init__(self, files: Files, chosen: np.ndarray, crops: tuple[int, ...], workers: int, device="cpu"):
        self.files, self.chosen, self.crops, self.workers = files, chosen, crops, workers
        self.name = f"{files.name} train"
        self.sha256 = hashlib.sha256(f"{files.sha256} {crops}".encode()).hexdigest()
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: str | torch.device) -> "ImageStream":
        """Return the same stream, with batches on a device."""
        return ImageStream(self.files, self.chosen, self.crops, self.workers, device)

    def batches(self, batch_size: int, generator: Generator, skip=0, shard: Shard | None = None) -> Iterator[Tensor]:
        """Yield an epoch of float batches [B, 3, crop, crop] in [-1, 1] on the device, as `data.batches` does.

        Order, sides and crops depend on the generator alone: not on the number of workers, nor on `skip`.
        """
        order = torch.randperm(len(self), generator=generator).split(batch_size)
        sides = torch.randint(len(self.crops), (len(order),), generator=generator).tolist()
        seed = int(torch.randint(2**62, (), generator=generator))
        # Arrays to the workers and back: tensors would go through shared memory, of which a container has little.
        batches = [(shard(indices) if shard else indices).numpy() for indices in order[skip:]]
        plan = [(indices, self.crops[side], seed) for indices, side in zip(batches, sides[skip:])]
        # No fork server: its children hear a Ctrl-C while they start. And torch's own generator is the model's.
        start = "spawn" if self.workers and multiprocessing.get_start_method() == "forkserver" else None
        options: dict = dict(num_workers=self.workers, multiprocessing_context=start, generator=Generator())
        with _no_interrupts():
            read = iter(DataLoader(self, sampler=plan, batch_size=None, collate_fn=tuple, **options))
        pinned = self.device.type == "cuda"  # copied while the GPU computes
        for pictures, broken in read:
            if pictures is None:
                raise DataError(broken[-1])
            for message in broken:
                warnings.warn(message, stacklevel=2)
            x = torch.from_numpy(pictures)
            yield to_model((x.pin_memory() if pinned else x).to(self.device, non_blocking=pinned))

    def __getitem__(self, key: tuple[np.ndarray, int, int]) -> tuple[np.ndarray | None, list[str]]:
        """Do the work of a worker: (indices, side, seed) → uint8 [B, 3, side, side], and messages about images."""
        indices, side, seed = key
        pictures, messages = [], []
        for i in indices:
            try:  # one broken image in a million does not end a training
                with warnings.catch_warnings(record=True, action="always") as said:
                    here = np.take(self.chosen, range(i, i + MAX_BROKEN), mode="wrap")
                    _, image, broken = self.files.read_first(here)
            except DataError as error:
                return None, [str(error)]
            messages += [f"{message}; the next one is taken in its place" for message in broken]
            messages += [str(one.message) for one in said if one.category is UserWarning]  # not those of other threads
            pictures.append(square(image, side, np.random.default_rng((seed, i))).numpy())
        return np.stack(pictures), messages


def square(image: Image.Image, side: int, rng: np.random.Generator | None = None) -> Tensor:
    """Cut a square out of an RGB image, anywhere in it, or the centre without an rng: uint8 [3, side, side]."""
    size = min(side, *image.size)  # the square of a thin image is scaled up, not the image, which may be long
    left, top = (int(rng.integers(length - size + 1)) if rng else (length - size) // 2 for length in image.size)
    cut = image.crop((left, top, left + size, top + size))
    # Contiguous: a batch with its channels last is convolved in another order, and a worker's batch loses that layout.
    return pil_to_tensor(cut if size == side else cut.resize((side, side))).contiguous()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this block, and for good in workers that start in it: the step that is under way needs them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
