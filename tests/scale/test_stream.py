"""Images that are read while training: folders and tar shards, any size, exactly resumable, some of them broken."""

import io
import shutil
import signal
import tarfile
import warnings

import numpy as np
import psutil
import pytest
import torch
import webdataset
from PIL import Image

from dcae_lib import TrainConfig, train
from dcae_lib.data import DataError, to_uint8
from dcae_lib.scale import stream
from dcae_lib.scale.stream import ImageStream, square, stream_images


def picture(i):
    """RGB noise of a size of its own; its first pixel says which picture it is."""
    array = np.random.default_rng(i).integers(0, 256, (32 + i, 90 - i // 2, 3), dtype=np.uint8)
    array[0, 0, 0] = i
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """90 pictures of several sizes, in two folders."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(90):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        picture(i).save(root / "ab"[i % 2] / f"{i:03d}.png")
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same pictures as WebDataset writes them: 5 shards, with other members between the images."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        with webdataset.TarWriter(str(root / f"train-{shard:03d}.tar")) as sink:
            for i in range(shard * 18, shard * 18 + 18):
                picture(i).save(file := io.BytesIO(), "PNG")
                sink.write({"__key__": f"deep/{i:03d}", "png": file.getvalue(), "cls": i})
    return root


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def epoch(splits, batch_size=7, seed=0, **options):
    return list(splits.train.batches(batch_size, torch.Generator().manual_seed(seed), **options))


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_every_image_is_found_and_read_as_it_is(kind, request):
    files = ImageStream(request.getfixturevalue(kind), (16,), 0)
    numbers = [files.read(i).getpixel((0, 0))[0] for i in range(len(files))]
    assert sorted(numbers) == list(range(90))
    assert all(files.read(i).tobytes() == picture(number).tobytes() for i, number in enumerate(numbers))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_an_epoch_holds_every_image_once(kind, request, monkeypatch):
    def first_pixel(image, side, rng=None):
        return torch.tensor(image.getpixel((0, 0)), dtype=torch.uint8).view(3, 1, 1)

    monkeypatch.setattr(stream, "square", first_pixel)
    splits = stream_images(request.getfixturevalue(kind), 32, workers=0)
    batches = [to_uint8(x) for x in epoch(splits)]
    assert [len(x) for x in batches] == [7] * 11 + [4] and len(splits.test) == 9
    assert sorted(torch.cat([*batches, splits.test.images])[:, 0, 0, 0].tolist()) == list(range(90))


def test_the_test_set_holds_the_centres_of_few_images(folder, monkeypatch):
    monkeypatch.setattr(stream, "MAX_TESTS", 4)
    splits = stream_images(folder, (16, 32), workers=0)
    rest = sorted({*range(90)} - {*splits.train.chosen.tolist()})
    centres = [square(splits.train.read(i), 32) for i in rest]
    assert len(rest) == 4 and torch.equal(splits.test.images, torch.stack(centres))


def test_one_shard_is_enough(shards):
    assert len(stream_images(sorted(shards.glob("*.tar"))[0], 32, workers=0).train) == 17


def test_crops_lie_anywhere_within_the_image():
    rows, columns = np.mgrid[:40, :50]
    image = Image.fromarray(np.stack([columns, rows, rows], -1).astype(np.uint8))
    corners = set()
    for seed in range(3000):
        crop = square(image, 30, np.random.default_rng(seed))
        left, top = crop[0, 0, 0].item(), crop[1, 0, 0].item()
        assert crop[0, 0, -1] == left + 29 and crop[1, -1, 0] == top + 29
        corners.add((left, top))
    assert corners == {(left, top) for left in range(21) for top in range(11)}
    assert square(image, 30)[:2, 0, 0].tolist() == [10, 5]


# ---- exact


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_an_epoch_follows_from_the_generator_alone(workers, folder):
    splits, whole = stream_images(folder, (16, 24, 32), workers), epoch(stream_images(folder, (16, 24, 32), workers=0))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert {x.shape[2] for x in whole} == {16, 24, 32} and not same(whole, epoch(splits, seed=1))
    for skip in (0, 5, 12):
        assert same(whole[skip:], epoch(splits, skip=skip))
    for rank in range(2):
        assert same([x[rank::2] for x in whole], epoch(splits, shard=lambda indices, rank=rank: indices[rank::2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hash_tells_other_files_and_sides_apart(folder, copy):
    splits, moved = stream_images(folder, 32, workers=0), stream_images(copy, 32, workers=0)
    assert moved.train.sha256 == splits.train.sha256 and moved.test.sha256 == splits.test.sha256
    assert stream_images(folder, (16, 32)).train.sha256 != splits.train.sha256
    picture(5).save(copy / "new.png")
    assert stream_images(copy, 32, workers=0).train.sha256 != splits.train.sha256


@pytest.mark.slow
def test_a_stopped_training_ends_with_the_same_weights(folder, tmp_path, monkeypatch):
    config = TrainConfig(dataset=str(folder), crop=(16, 32), epochs=2, batch_size=10, model=dict(groups=1))
    whole, reads = train(config), []

    def read(files, i, read=ImageStream.read):
        reads.append(i)
        if len(reads) == 9 + 130:  # of 81 images an epoch, after 9 of the test set
            raise KeyError("stopped")
        return read(files, i)

    monkeypatch.setattr(ImageStream, "read", read)
    with pytest.raises(KeyError, match="stopped"):
        train(config, tmp_path, stream_images(folder, config.crop, workers=0), save_every=0.0)
    monkeypatch.undo()
    again = train(config, tmp_path)
    assert 9 < again.sessions[1]["step"] < 18  # within the second epoch
    assert same(list(whole.model.parameters()), list(again.model.parameters()))


# ---- broken images and shards


def test_a_broken_image_is_named_and_another_stands_in(copy):
    splits = stream_images(copy, 16, workers=0)
    name = splits.train.paths[splits.train.chosen[-1]].decode()  # the last one: the next one is the first
    (copy / name).write_bytes(b"\x89PNG and nothing else")
    with pytest.warns(UserWarning, match=rf"{name} .*the next one is taken in its place"):
        assert sum(map(len, epoch(splits))) == 81


def test_a_broken_test_image_is_left_out(copy):
    whole = stream_images(copy, 16, workers=0)
    first = int(torch.randperm(90, generator=torch.Generator().manual_seed(0))[0])
    name = whole.train.paths[first].decode()
    (copy / name).write_bytes(b"no")
    with pytest.warns(UserWarning, match=rf"{name} is not a picture.*the next one is taken"):
        splits = stream_images(copy, 16, workers=0)
    assert len(splits.test) == 9 and len(splits.train) == 80
    assert set(splits.train.chosen.tolist()) < set(whole.train.chosen.tolist())


def test_many_broken_images_in_a_row_end_the_epoch(copy):
    splits = stream_images(copy, 16, workers=0)
    for i in splits.train.chosen[5:]:
        (copy / splits.train.paths[int(i)].decode()).write_bytes(b"no")
    with pytest.raises(DataError, match="too many images in a row cannot be read"):
        epoch(splits)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.mkdir(), "holds fewer than two images"),
        (lambda path: (path.mkdir(), picture(0).save(path / "one.png")), "holds fewer than two images"),
        (
            lambda path: (path.mkdir(), [(path / f"{i}.png").write_bytes(b"no") for i in range(3)]),
            "too many images in a row",
        ),
        (lambda path: None, "source is no folder, and no tar file .*No such file"),
        (lambda path: path.write_bytes(b"no tar" * 1000), "no tar file that can be read uncompressed"),
        (lambda path: tarfile.open(path, "w:gz").close(), "no tar file that can be read uncompressed"),
    ],
)
def test_what_cannot_be_streamed_is_named(make, message, tmp_path):
    make(tmp_path / "source")
    with pytest.raises(DataError, match=message), warnings.catch_warnings(action="ignore"):
        stream_images(tmp_path / "source", 16)


def test_images_beside_shards_are_not_left_out_in_silence(shards, copy):
    (copy / "backup.tar").write_bytes((shards / "train-000.tar").read_bytes())
    with pytest.raises(DataError, match=r"holds images and \.tar files"):
        stream_images(copy, 16)


def test_a_shard_that_was_cut_is_named(shards, tmp_path):
    data = (shards / "train-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2 + 100])
    with pytest.raises(DataError, match=r"cut\.tar"):
        stream_images(tmp_path / "cut.tar", 16, workers=0)


# ---- workers


@pytest.mark.slow
def test_workers_outlive_a_ctrl_c_that_all_processes_get(folder):
    batches = stream_images(folder, 16, workers=1).train.batches(9, torch.Generator().manual_seed(0))
    first = next(batches)
    for worker in psutil.Process().children():
        worker.send_signal(signal.SIGINT)
    assert len(first) == 9 and sum(map(len, batches)) == 72


def test_members_that_nobody_put_there_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, name in enumerate(
            ("2020.01.png", "./day/7.png", ".ipynb_checkpoints/1.png", "__MACOSX/2.png", "._3.png")
        ):
            Image.new("RGB", (8 + i, 8)).save(file := io.BytesIO(), "PNG")
            (info := tarfile.TarInfo(name)).size = file.tell()
            tar.addfile(info, io.BytesIO(file.getvalue()))
    files = ImageStream(tmp_path / "a.tar", (16,), 0)
    assert [files.read(i).width for i in range(len(files))] == [8, 9]
