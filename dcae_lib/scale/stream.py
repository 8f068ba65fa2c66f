"""Images that need not fit into memory: a folder or tar shards, read and cropped while the network trains."""

import hashlib
import io
import os
import signal
import tarfile
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from ..data import DataError, Splits, image_files, image_set, open_picture, to_model
from ..data.pictures import is_image
from ..data.sets import Shard

WORKERS = 2  # of each training process
MAX_TESTS = 500  # images that are evaluated after every epoch, kept in memory
MAX_BROKEN = 20  # unreadable images in a row after which the whole source counts as broken


def stream_images(source: str | Path, crop: int | Sequence[int], workers: int = WORKERS) -> Splits:
    """Return Splits whose training images are read anew in every epoch, and cropped at random to a square.

    source: a folder of images; or tar shards as WebDataset writes them (uncompressed; every member that is an image is
    taken): a folder of them, or one. crop: a side in pixels, or several, of which each batch has one; a shorter image
    is scaled up. A tenth of the images, 500 at most, is the test set, in memory: the centre of each, at the largest
    side. workers: processes that read; 0 reads in this one. (Where they are not forked, on macOS, Windows and from
    Python 3.14, a program needs the guard `if __name__ == "__main__":`.)

    Memory holds about 30 bytes per image and the length of the longest name. The training images' `sha256` is of names,
    lengths and sides, not of pixels. An image that cannot be read is named in a warning, and the next one taken;
    DataError if there are no two, or 20 in a row cannot be read.
    """
    crops = (crop,) if isinstance(crop, int) else tuple(crop)
    stream = ImageStream(source, crops, workers)
    if len(stream) < 2:
        raise DataError(f"{source} holds fewer than two images: one to train on, one to test")
    order = torch.randperm(len(stream), generator=Generator().manual_seed(0)).numpy()
    candidates, tests = iter(order[:-1]), {}
    for _ in range(max(1, min(len(stream) // 10, MAX_TESTS))):
        i, image = stream.read_first(candidates)
        tests[i] = square(image, max(crops))
    stream.chosen = np.sort(np.append(np.fromiter(candidates, np.int64), order[-1]))
    test = image_set(torch.stack([tests[i] for i in sorted(tests)]), None, stream.name.removesuffix("train") + "test")
    return Splits(stream, test)


class ImageStream(Dataset):
    """Images that stay in their files until a batch needs them, of a folder or of shards; made by `stream_images`.

    paths: names of files below `root`; places: int64 [3, N], the file, first byte and length of each image; chosen: the
    images to train on, at first all.
    """

    def __init__(self, source: str | Path, crops: tuple[int, ...], workers: int):
        source = Path(source).expanduser()
        self.root = source if source.is_dir() else source.parent
        shards = sorted(source.glob("*.tar")) if source.is_dir() else [source]
        files = sorted((os.fsencode(name), length) for name, length in image_files(source))
        if shards and files:
            raise DataError(f"{source} holds images and .tar files; keep them in two folders")
        if shards:
            names, self.places = [os.fsencode(shard.name) for shard in shards], _in_shards(shards)
        else:
            names, lengths = [name for name, _ in files], np.array([length for _, length in files], np.int64)
            self.places = np.stack([np.arange(len(files)), np.zeros_like(lengths), lengths])
        self.paths, self.chosen = np.array(names), np.arange(self.places.shape[1])
        self.crops, self.workers, self.device = crops, workers, torch.device("cpu")
        self.name = f"{Path(os.path.abspath(source)).name} train"
        found = hashlib.sha256(self.paths.tobytes() + self.places.tobytes()).hexdigest()
        self.sha256 = hashlib.sha256(f"{found} {crops}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: str | torch.device) -> "ImageStream":
        """Return the same stream, with batches on a device."""
        moved = copy(self)
        moved.device = torch.device(device)
        return moved

    def read(self, i: int) -> Image.Image:
        """Read image i in RGB. Raises DataError or OSError that names it."""
        k, start, length = self.places[:, i]
        path = os.path.join(self.root, os.fsdecode(self.paths[k]))
        name = f"{path} (the image at byte {start:,})" if start else path
        with open(path, "rb") as file:
            file.seek(start)
            return open_picture(io.BytesIO(file.read(length)), name)

    def read_first(self, candidates: Iterable[int]) -> tuple[int, Image.Image]:
        """Read the first candidate that can be read, and warn of those before it: its number and its image."""
        for i in islice(candidates, MAX_BROKEN):
            try:
                return i, self.read(i)
            except (DataError, OSError) as error:
                warnings.warn(f"{error}; the next one is taken in its place", stacklevel=2)
        raise DataError(f"too many images in a row cannot be read below {self.root}")

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
        options: dict = dict(num_workers=self.workers, worker_init_fn=_ignore_ctrl_c, collate_fn=np.asarray)
        # A generator of its own: torch's belongs to the model.
        for pictures in DataLoader(self, sampler=plan, batch_size=None, generator=Generator(), **options):
            yield to_model(torch.from_numpy(pictures).to(self.device))

    def __getitem__(self, key: tuple[np.ndarray, int, int]) -> np.ndarray:
        """Do the work of a worker: (indices, side, seed) → uint8 [B, 3, side, side]."""
        (indices, side, seed), pictures = key, []
        for i in indices:  # one broken image in a million does not end a training
            _, image = self.read_first(np.take(self.chosen, range(i, i + MAX_BROKEN), mode="wrap"))
            pictures.append(square(image, side, np.random.default_rng((seed, i))).numpy())
        return np.stack(pictures)


def _ignore_ctrl_c(worker: int) -> None:
    """Let a worker outlive a Ctrl-C: the training ends its step, for which it may need a batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_shards(shards: list[Path]) -> np.ndarray:
    """Find the images in tar shards, in the order of shards and members: int64 [3, N], as `ImageStream.places`."""
    images = array("q")
    for k, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    if member.isreg() and is_image(member.name):
                        images.extend((k, member.offset_data, member.size))
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard} is no folder, and no tar file that can be read uncompressed ({error})") from error
    return np.frombuffer(images, np.int64).reshape(-1, 3).T


def square(image: Image.Image, side: int, rng: np.random.Generator | None = None) -> Tensor:
    """Cut a square out of an RGB image, anywhere in it, or the centre without an rng: uint8 [3, side, side]."""
    size = min(side, *image.size)  # the square of a thin image is scaled up, not the image, which may be long
    left, top = (int(rng.integers(length - size + 1)) if rng else (length - size) // 2 for length in image.size)
    cut = image.crop((left, top, left + size, top + size))
    # Contiguous: a batch with its channels last is convolved in another order, and a worker's batch loses that layout.
    return pil_to_tensor(cut if size == side else cut.resize((side, side))).contiguous()
