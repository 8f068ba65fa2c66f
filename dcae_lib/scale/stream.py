"""Images that need not fit into memory: a folder or tar shards, read and cropped by workers while the network trains."""

import hashlib
import io
import multiprocessing
import os
import signal
import tarfile
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from ..data import DataError, ImageSet, Splits, image_files, open_picture, pixel_sizes, to_model
from contextlib import nullcontext as no_interrupts

WORKERS = 2                 # of each training process
SHARDS_AT_A_TIME = 8        # the images of so many shards are mixed: a reader of a million does not jump among all of them
MOST_TESTS = 500            # images that are evaluated after every epoch, kept in memory
PATIENCE = 20               # broken images in a row before it is the folder that is broken


def stream_images(source: str | Path | Sequence[str | Path], crop: int | Sequence[int], workers: int = WORKERS) -> Splits:
    """Splits whose training images are read anew in every epoch, and cropped at random to a square of `crop` pixels.

    source: a folder of images; or tar shards in WebDataset's format (uncompressed; each image a member, such as
    000123.jpg): a folder of them, a list of them, or one. crop: a side, or several, of which each batch has one.
    Where an image is shorter than that, the crop is, and it is scaled up. A tenth of the images, 500 at most, is the test
    set, in memory: the centre of each, at the largest side. workers: processes that read; 0: this one does. (Where they are
    not forked, on macOS and Windows, and from Python 3.14 on Linux, a program that trains must stand under `if __name__ == "__main__":`.)

    Memory holds about 30 bytes for each image and the length of the longest name, whatever the pictures' size: in this
    process, and in each worker that is not forked; as an epoch is put in order, a few times as much. The sums
    (`sha256`) of the training images are of names, lengths and sides, not of pixels. An image that cannot be read is named
    in a warning, and another one taken. Raises DataError if there is nothing to read or 20 in a row cannot be read,
    ValueError for a crop that is no side or a number of workers below 0.
    """
    crops = pixel_sizes("crop", crop)
    if not crops:
        raise ValueError("crop must be a side in pixels, or several; none was given")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    files = Files(source)
    if len(files) < 2:
        found = "one image" if len(files) else "no images"
        raise DataError(f"{files.name} holds {found}; two are needed, one for training and one for the test")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    pictures: dict[int, Tensor] = {}
    broken = 0                                              # in a row
    for k, i in enumerate(map(int, order[:-1].numpy())):    # noqa: B007  (the training images begin where it ends)
        try:
            pictures[i], broken = centre(files.read(i), max(crops)), 0
        except DataError as error:
            broken += 1
            if broken == PATIENCE:
                raise DataError(f"{PATIENCE} images in a row cannot be read; the last: {error}") from error
            warnings.warn(f"{error}; it is left out", stacklevel=2)
        if len(pictures) == max(1, min(len(files) // 10, MOST_TESTS)):
            break
    else:
        raise DataError(f"{files.name} holds too few images that can be read")
    images = torch.stack([pictures[i] for i in sorted(pictures)])
    test = ImageSet(images, None, f"{files.name} test", hashlib.sha256(images.permute(0, 2, 3, 1).numpy().tobytes()).hexdigest())
    return Splits(ImageStream(files, order[k + 1 :].sort().values, crops, workers), test)


class Files:
    """Where each image lies: a file, the byte at which it begins, its length. Arrays, so that millions are little."""

    def __init__(self, source: str | Path | Sequence[str | Path]):
        self.root: Path | None = None
        if isinstance(source, (str, Path)):
            self.name, shards = Path(os.path.abspath(source)).name, [Path(source)]
            if not shards[0].exists():
                raise DataError(f"there is no folder or tar file {source}: crops are of images in a folder or in tar shards")
            if shards[0].is_dir():
                self.root = shards[0]
                shards = sorted(self.root.glob("*.tar"))
                if shards and any(True for _ in image_files(self.root)):
                    raise DataError(f"{source} holds images and .tar files; put them into folders of their own, or name the shards")
        else:
            shards = [Path(path) for path in source]
            self.name = f"{len(shards)} shards"
        found = _in_folder(self.root) if self.root and not shards else _in_shards(shards, self.root)
        self.paths, self.path, self.start, self.length = found

    def __len__(self) -> int:
        return len(self.path)

    @property
    def sha256(self) -> str:
        """Of the names of the files, and of the place and length of each image in them."""
        names = self.paths if self.root else np.array([os.path.basename(path) for path in self.paths])
        digest = hashlib.sha256()
        for part in (names, self.path, self.start, self.length):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def read(self, i: int) -> Image.Image:
        """Image i in RGB. Raises DataError that names it."""
        path = os.path.join(self.root or "", os.fsdecode(self.paths[self.path[i]]))
        name = f"{path} (the image at byte {self.start[i]:,})" if self.start[i] else path
        try:
            with open(path, "rb") as file:
                file.seek(self.start[i])
                data = file.read(self.length[i])
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror or error})") from error
        return open_picture(io.BytesIO(data), name)


class ImageStream:
    """Images to train on that stay where they are until a batch needs them: what `stream_images` gives."""

    def __init__(self, files: Files, chosen: Tensor, crops: tuple[int, ...], workers: int):
        self.files, self.chosen, self.crops, self.workers = files, chosen, crops, workers
        self.name = f"{files.name} train"
        self.sha256 = hashlib.sha256(f"{files.sha256} {crops}".encode()).hexdigest()
        self.device = torch.device("cpu")
        self.loader: DataLoader | None = None               # with workers that have done an epoch and wait for the next

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: str | torch.device) -> "ImageStream":
        """The same stream, with batches on a device."""
        other = ImageStream(self.files, self.chosen, self.crops, self.workers)
        other.device = torch.device(device)
        return other

    def batches(
        self, batch_size: int, generator: torch.Generator, skip: int = 0, part: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[Tensor]:
        """An epoch of float batches [B, 3, crop, crop] in [-1, 1] on the device, as `data.batches` says.

        Order, sizes and crops follow from the generator alone: not from the number of workers, nor from where it begins.
        """
        order = self._order(generator).split(batch_size)
        chosen = torch.randint(len(self.crops), (len(order),), generator=generator).tolist()
        seed = int(torch.randint(2**62, (), generator=generator))
        # Lists to the workers and arrays back: tensors would go through shared memory, of which a container has little.
        plan = (((part(index) if part else index).tolist(), self.crops[side], seed)
                for index, side in islice(zip(order, chosen), skip, None))
        loader, self.loader = self.loader, None             # an epoch beside this one starts workers of its own
        starting = no_interrupts() if loader is None else nullcontext()         # by a Ctrl-C a worker that starts would end
        if loader is None:
            loader = self._loader()
        cast(Plan, loader.sampler).plan = plan
        with starting:
            read = iter(loader)
        for pictures, notes in read:
            if pictures is None:
                raise DataError(f"{PATIENCE} images in a row cannot be read; the last: {notes[-1]}")
            for note in notes:
                warnings.warn(f"{note}; the next one is taken in its place", stacklevel=2)
            x = torch.from_numpy(pictures)
            if self.device.type == "cuda":                  # copied while the GPU computes
                yield to_model(x.pin_memory().to(self.device, non_blocking=True))
            else:
                yield to_model(x.to(self.device))
        self.loader = loader

    def _loader(self) -> DataLoader:
        """Workers that read what a plan says; they stay, since where they are not forked each imports torch anew."""
        return DataLoader(
            Crops(self), sampler=Plan(), batch_size=None, collate_fn=tuple, num_workers=self.workers,
            generator=torch.Generator(),                    # that of torch is the model's
            worker_init_fn=_ignore_interrupts, persistent_workers=self.workers > 0,
            multiprocessing_context=start_method() if self.workers else None,
        )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"loader": None}             # workers belong to one process

    def _order(self, generator: torch.Generator) -> Tensor:
        """A permutation of the images, in which those of a few shards at a time are mixed."""
        alone = len(self.files.paths) == len(self.files)    # a file for each: all are mixed
        together = len(self.files.paths) if alone else SHARDS_AT_A_TIME
        turn = torch.randperm(len(self.files.paths), generator=generator) // together
        shuffled = torch.rand(len(self), generator=generator, dtype=torch.float64)
        return torch.argsort(turn[torch.from_numpy(self.files.path)[self.chosen]] + shuffled)


class Plan:
    """The batches of the epoch that begins, for a loader that outlives it."""

    plan: Iterator[tuple[list[int], int, int]] = iter(())

    def __iter__(self) -> Iterator[tuple[list[int], int, int]]:
        return self.plan


class Crops(Dataset):
    """What a worker does: (numbers of images, side, seed) → uint8 [B, 3, side, side], and notes on what was broken."""

    def __init__(self, stream: ImageStream):
        self.files, self.chosen = stream.files, stream.chosen.numpy()

    def __getitem__(self, key: tuple[list[int], int, int]) -> tuple[np.ndarray | None, list[str]]:
        index, side, seed = key
        pictures, notes = [], []
        for i in index:
            for k in range(PATIENCE):                       # one broken image in a million does not end a training
                try:
                    image = self.files.read(int(self.chosen[(i + k) % len(self.chosen)]))
                    break
                except DataError as error:
                    notes.append(str(error))
            else:
                return None, notes
            pictures.append(random_crop(image, side, np.random.default_rng((seed, i))).numpy())
        return np.stack(pictures), notes


def start_method() -> str | None:
    """How workers are started: as Python does, but not by a fork server, whose children do hear a Ctrl-C while they start."""
    return "spawn" if multiprocessing.get_start_method() == "forkserver" else None


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to workers as well; this process still needs them until its step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def random_crop(image: Image.Image, side: int, rng: np.random.Generator) -> Tensor:
    """A square of an RGB image, anywhere in it: uint8 [3, side, side]."""
    room = [length - min(side, *image.size) for length in image.size]
    return _square(image, int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)), side)


def centre(image: Image.Image, side: int) -> Tensor:
    """The square in the middle of an RGB image: uint8 [3, side, side]."""
    room = [length - min(side, *image.size) for length in image.size]
    return _square(image, room[0] // 2, room[1] // 2, side)


def _square(image: Image.Image, left: int, top: int, side: int) -> Tensor:
    """A square as large as the image has it, up to `side`, at `side`: a thin image would be huge if it were scaled as a whole."""
    there = min(side, *image.size)
    square = image.crop((left, top, left + there, top + there))
    # Contiguous: a batch with its channels last is convolved in another order, and a worker's batch loses that layout.
    return pil_to_tensor(square if there == side else square.resize((side, side))).contiguous()


def _in_folder(folder: Path) -> tuple[np.ndarray, ...]:
    """Every image in a folder and those within it, by name: names, and for each its place among them, 0 and its length."""
    found = sorted((os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/")), length) for path, length in image_files(folder))
    if not found:
        raise DataError(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}) and no .tar shards")
    names, lengths = zip(*found)
    count = len(names)
    return np.array(names), np.arange(count, dtype=np.int64), np.zeros(count, np.int64), np.array(lengths, np.int64)


def _in_shards(shards: Sequence[Path], root: Path | None) -> tuple[np.ndarray, ...]:
    """Every image in tar shards: the shards' names, and for each image its shard, its first byte and its length."""
    path, start, length = array("q"), array("q"), array("q")
    for k, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()                     # type: ignore[attr-defined]  # it would keep them all
                    # WebDataset: what follows the first dot says what a member is.
                    kind = "." + member.name.rpartition("/")[2].partition(".")[2].lower()
                    if member.isreg() and not member.issparse() and kind in IMG_EXTENSIONS:
                        path.append(k)
                        start.append(member.offset_data)
                        length.append(member.size)
                with open(shard, "rb") as file:             # tarfile takes a damaged header for the end
                    file.seek(tar.offset)
                    if file.read(512).strip(b"\0"):
                        raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard} cannot be read as a tar file that is not compressed ({error})") from error
    names = [os.fsencode(os.path.relpath(shard, root) if root else shard) for shard in shards]
    return np.array(names), *(np.frombuffer(numbers, np.int64) for numbers in (path, start, length))
