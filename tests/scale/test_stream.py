"""Images that are read while training: folders and tar shards, any size, exactly resumable, whatever is broken."""

import copy
import gc
import io
import multiprocessing
import os
import signal
import tarfile
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from dcae_lib import DCAE, TrainConfig, train
from dcae_lib.runs.checkpoint import TrainingState
from dcae_lib.data.cifar10 import DataError
from dcae_lib.scale.stream import MOST_TESTS, Files, centre, random_crop, stream_images
from dcae_lib.training import main
from dcae_lib.runs.verify import verify


def picture(i, size=(40, 50)):
    """RGB noise; its first pixel says which picture it is."""
    array = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
    array[0, 0] = i // 256, i % 256, 7
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """90 pictures of several sizes, in two folders."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(90):
        place = root / ("a" if i % 2 else "b")
        place.mkdir(exist_ok=True)
        picture(i, (32 + i, 90 - i // 2)).save(place / f"{i:03d}.png")
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same pictures as WebDataset writes them: 5 shards, other members beside the images."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        with webdataset.TarWriter(str(root / f"train-{shard:03d}.tar")) as sink:
            for i in range(shard * 18, shard * 18 + 18):
                file = io.BytesIO()
                picture(i, (32 + i, 90 - i // 2)).save(file, "PNG")
                sink.write({"__key__": f"deep/{i:03d}", "png": file.getvalue(), "cls": i % 10, "mask.png": b"no picture"})
    return root


def epoch(splits, batch_size=7, seed=0, **options):
    return list(splits.train.batches(batch_size, torch.Generator().manual_seed(seed), **options))


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


# ---- what is found, and what comes out


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_every_image_is_found_and_comes_once_in_an_epoch(kind, folder, shards):
    splits = stream_images(folder if kind == "folder" else shards, 32, workers=0)
    assert len(splits.train) == 81 and len(splits.test) == 9
    batches = epoch(splits)
    assert [len(x) for x in batches] == [7] * 11 + [4] and batches[0].shape == (7, 3, 32, 32)
    assert batches[0].dtype == torch.float32 and -1 <= batches[0].min() < -0.5 < 0.5 < batches[0].max() <= 1


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_pixels_are_those_of_the_files(kind, folder, shards):
    files = Files(folder if kind == "folder" else shards)
    assert len(files) == 90
    seen = set()
    for i in range(len(files)):
        array = np.asarray(files.read(i))
        number = int(array[0, 0, 0]) * 256 + int(array[0, 0, 1])
        assert np.array_equal(array, np.asarray(picture(number, (32 + number, 90 - number // 2))))
        seen.add(number)
    assert seen == set(range(90))


def test_training_and_test_images_are_never_the_same(folder):
    splits = stream_images(folder, 32, workers=0)
    chosen = set(splits.train.chosen.tolist())
    others = [i for i in range(90) if i not in chosen]
    assert torch.equal(splits.test.images, torch.stack([centre(splits.train.files.read(i), 32) for i in others]))


def test_the_test_set_has_an_end(monkeypatch, folder):
    monkeypatch.setattr("dcae_lib.scale.stream.MOST_TESTS", 4)
    assert MOST_TESTS == 500 and len(stream_images(folder, 16, workers=0).test) == 4


def test_a_list_of_shards_and_one_shard_are_read_as_a_folder_of_them_is(shards):
    paths = sorted(shards.glob("*.tar"))
    whole, listed = stream_images(shards, 32, workers=0), stream_images(paths, 32, workers=0)
    assert same(epoch(whole), epoch(listed)) and whole.train.sha256 == listed.train.sha256
    assert len(stream_images(paths[0], 32, workers=0).train) == 17


def test_crops_lie_anywhere_within_the_image_and_nowhere_else():
    image = Image.fromarray(np.stack(np.meshgrid(np.arange(50), np.arange(40), [0]), -1)[:, :, 0].astype(np.uint8))
    corners = set()
    for seed in range(3000):
        crop = random_crop(image, 30, np.random.default_rng(seed))
        left, top = crop[0, 0, 0].item(), crop[1, 0, 0].item()
        assert crop[0, 0, -1] == left + 29 and crop[1, -1, 0] == top + 29
        corners.add((left, top))
    assert corners == {(left, top) for left in range(21) for top in range(11)}


def test_an_image_that_is_too_small_is_scaled_up():
    assert random_crop(picture(0, (10, 300)), 32, np.random.default_rng(0)).shape == (3, 32, 32)
    assert centre(picture(0, (1, 1)), 32).shape == (3, 32, 32)


def test_each_batch_has_one_of_several_sides(folder):
    sides = [x.shape[2] for x in epoch(stream_images(folder, (16, 24, 32), workers=0), 3)]
    assert set(sides) == {16, 24, 32}
    assert stream_images(folder, (16, 24, 32), workers=0).test.images.shape[2:] == (32, 32)


# ---- exact


@pytest.mark.parametrize("workers", [1, 3])
def test_it_does_not_depend_on_the_number_of_workers(workers, folder):
    assert same(epoch(stream_images(folder, (16, 32), workers)), epoch(stream_images(folder, (16, 32), workers=0)))


def test_it_goes_on_at_the_exact_sample(shards):
    splits = stream_images(shards, (16, 32), workers=0)
    whole = epoch(splits)
    for skip in (1, 5, 11, 12):
        assert same(epoch(splits, skip=skip), whole[skip:])


def test_the_next_epoch_is_another_one(folder):
    splits, generator = stream_images(folder, 32, workers=0), torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(splits.train.batches(9, generator))) for _ in range(2))
    assert not torch.equal(first, second)


def test_processes_take_the_parts_of_every_batch(folder):
    splits = stream_images(folder, 32, workers=0)
    parts = [epoch(splits, part=lambda index, rank=rank: index[rank::2]) for rank in range(2)]
    for whole, one, other in zip(epoch(splits), *parts):
        assert torch.equal(whole[::2], one) and torch.equal(whole[1::2], other)


def test_it_draws_nothing_from_the_generator_of_the_model(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    epoch(stream_images(folder, 32, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_shards_are_mixed_a_few_at_a_time(shards, monkeypatch):
    monkeypatch.setattr("dcae_lib.scale.stream.SHARDS_AT_A_TIME", 2)
    stream = stream_images(shards, 16, workers=0).train
    order = stream._order(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(len(stream)))
    path = stream.files.path[stream.chosen[order]]
    groups = [set(path[:20].tolist()), set(path[-12:].tolist())]
    assert len(groups[0]) == 2 and len(groups[1]) <= 2 and not groups[0] & groups[1]


def test_the_sums_tell_other_files_from_these(folder, shards, tmp_path):
    splits = stream_images(folder, 32, workers=0)
    copy = tmp_path / "moved"
    for path in folder.rglob("*.png"):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    moved = stream_images(copy, 32, workers=0)
    assert moved.train.sha256 == splits.train.sha256 and moved.test.sha256 == splits.test.sha256
    picture(500).save(copy / "new.png")
    assert stream_images(copy, 32, workers=0).train.sha256 != splits.train.sha256


@pytest.mark.parametrize("crop", [(16,), (16, 32)])
def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(crop, folder, tmp_path, monkeypatch):
    config = TrainConfig(dataset=str(folder), crop=crop, epochs=2, batch_size=10, model=dict(groups=1))
    whole = train(config)

    class Stop(Exception):
        pass

    def save_and_stop(state, step, save=TrainingState.save):
        save(state, step)
        if step == 13:                                      # of 9 steps an epoch
            raise Stop

    monkeypatch.setattr(TrainingState, "save", save_and_stop)
    with pytest.raises(Stop):
        train(config, tmp_path / "run", save_every=0.0)
    monkeypatch.undo()
    again = train(config, tmp_path / "run")
    assert [session["step"] for session in again.sessions] == [0, 13]
    for one, other in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("crop", ["96", "256"])
def test_the_command_trains_a_net_with_a_second_down_block_on_larger_crops(crop, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        picture(i, (300, 280)).save(photos / f"{i}.jpg")
    options = ["--dataset", str(photos), "--crop", crop, "--epochs", "1", "--batch-size", "2", "--out", str(tmp_path / "out")]
    assert main([*options, "--model", '{"channels": [16, 32, 64], "groups": 1}']) == 0
    assert "psnr" in capsys.readouterr().out
    assert set(verify(tmp_path / "out")) == {"l1", "l1_01", "psnr", "ssim"}    # which finds the same test images again
    assert '"crop": [' in (tmp_path / "out" / "history.json").read_text().replace("\n", "").replace("  ", "")


def test_the_command_reads_with_as_many_workers_as_asked_and_makes_the_same_weights(folder, tmp_path, monkeypatch, capsys):
    asked = []

    def loader(*arguments, **options):
        asked.append(options["num_workers"])
        return DataLoader(*arguments, **options)

    monkeypatch.setattr("dcae_lib.scale.stream.DataLoader", loader)
    options = ["--dataset", str(folder), "--crop", "16", "--epochs", "1", "--batch-size", "20"]
    assert main([*options, "--workers", "0", "--out", str(tmp_path / "0")]) == 0
    assert main([*options, "--workers", "3", "--out", str(tmp_path / "3")]) == 0
    assert asked == [0, 3]
    for one, other in zip(*(DCAE.from_pretrained(tmp_path / name).parameters() for name in "03")):
        assert torch.equal(one, other)
    assert main([*options, "--workers", "-1", "--out", str(tmp_path / "none")]) == 1
    assert "workers must be 0 or more, got -1" in capsys.readouterr().err
    assert main(["--dataset", "sample", "--workers", "3", "--out", str(tmp_path / "none")]) == 1
    assert "--workers read images while the network trains: give --crop too" in capsys.readouterr().err


# ---- what is broken


def test_a_broken_image_is_named_and_another_stands_in(folder, tmp_path):
    for path in folder.rglob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    splits = stream_images(tmp_path, 16, workers=1)
    name = splits.train.files.paths[splits.train.chosen[-1]].decode()       # the last one: the next one is the first
    (tmp_path / name).write_bytes(b"\x89PNG and nothing else")
    with pytest.warns(UserWarning, match=rf"{name} .*the next one is taken in its place"):
        assert sum(map(len, epoch(splits))) == 81


def test_a_broken_test_image_is_left_out_and_the_rest_stays_as_it_was(folder, tmp_path):
    for path in folder.rglob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = stream_images(tmp_path, 16, workers=0)
    first = int(torch.randperm(90, generator=torch.Generator().manual_seed(0))[0])
    (tmp_path / f"{first:03d}.png").write_bytes(b"no")
    with pytest.warns(UserWarning, match=rf"{first:03d}\.png is not a picture.*it is left out"):
        splits = stream_images(tmp_path, 16, workers=0)
    assert len(splits.test) == 9 and len(splits.train) == 80
    assert set(splits.train.chosen.tolist()) < set(whole.train.chosen.tolist())


def test_where_the_rest_of_the_images_is_broken_the_last_is_named_and_none_is_taken_in_its_place(folder, tmp_path):
    for path in folder.rglob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    splits = stream_images(tmp_path, 16, workers=0)
    for i in splits.train.chosen[5:]:
        (tmp_path / f"{int(i):03d}.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"20 images in a row cannot be read; the last: \S+\.png is not a picture.*known here$"):
        epoch(splits)


@pytest.mark.parametrize("count, message", [(3, "too few images that can be read"), (40, r"20 images in a row .*\.png is not a picture")])
def test_where_no_image_can_be_read_that_is_said(count, message, tmp_path):
    for i in range(count):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    with pytest.raises(DataError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream_images(tmp_path, 16)


def test_a_thin_image_is_not_scaled_up_as_a_whole(tmp_path, monkeypatch):
    """1×40,000 pixels, 200 bytes: scaled up to a side of 256 they would be 10 GB."""
    Image.new("L", (1, 40_000), 7).save(tmp_path / "thin.png")
    picture(1, (300, 300)).save(tmp_path / "wide.png")
    files, sizes = Files(tmp_path), []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *rest: sizes.append(size) or resize(image, size, *rest))
    for side, crop in ((256, centre(files.read(0), 256)), (32, random_crop(files.read(0), 32, np.random.default_rng(0)))):
        assert crop.shape == (3, side, side) and crop.unique().tolist() == [7]
    assert sizes == [(256, 256), (32, 32)]


def test_an_image_with_more_pixels_than_a_worker_has_memory_for_is_broken(tmp_path):
    Image.new("1", (20_000, 4_000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"huge\.png is 20000×4000; 64 megapixels at most"):
        Files(tmp_path).read(0)


def test_no_other_program_is_started_for_a_picture_that_is_none(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *command, **options: started.append(command))
    monkeypatch.setattr("subprocess.Popen", lambda *command, **options: started.append(command))
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"photo\.jpg is not a picture, or in a format that is not known here"):
        Files(tmp_path).read(0)
    assert started == []


def test_images_beside_shards_are_not_left_out_in_silence(shards, tmp_path):
    (tmp_path / "backup.tar").write_bytes((shards / "train-000.tar").read_bytes())
    picture(0).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"holds images and \.tar files"):
        stream_images(tmp_path, 16)
    (tmp_path / "within").mkdir()
    (tmp_path / "photo.png").rename(tmp_path / "within" / "photo.png")
    with pytest.raises(DataError, match=r"holds images and \.tar files"):
        stream_images(tmp_path, 16)


def test_what_cannot_be_looked_into_is_said_and_links_are_followed(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    assert len(Files(tmp_path)) == 90
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file"):
        Files(tmp_path)
    (tmp_path / "gone.png").unlink()
    (tmp_path / "round").symlink_to(tmp_path)
    assert len(Files(tmp_path)) == 90


def test_a_worker_that_was_killed_is_said(folder, tmp_path, monkeypatch, capsys):
    def killed(files, i, read=Files.read):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return read(files, i)

    monkeypatch.setattr(Files, "read", killed)             # which a forked worker inherits
    monkeypatch.setattr("dcae_lib.scale.stream.start_method", lambda: "fork")
    assert main(["--dataset", str(folder), "--crop", "16", "--epochs", "1", "--workers", "1", "--out", str(tmp_path / "out")]) == 1
    assert "a worker that reads images ended (DataLoader worker" in (said := capsys.readouterr().err) and "fewer --workers" in said


@pytest.mark.parametrize("crop, multiple", [("8", "at least 11"), ("30", "a multiple of 4")])
def test_a_crop_that_cannot_be_is_refused_before_the_training(crop, multiple, folder, tmp_path, capsys):
    assert main(["--dataset", str(folder), "--crop", "32", crop, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert multiple in said and f"got {crop}" in said and "training:" not in said


def test_one_side_may_be_a_number_and_other_sides_are_another_training(folder):
    assert TrainConfig(crop=32).crop == (32,) and TrainConfig(crop=[16, 32]).crop == (16, 32)
    assert stream_images(folder, 16).train.sha256 != stream_images(folder, (16, 32)).train.sha256


def test_a_folder_that_has_become_unreadable_ends_the_training(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dcae_lib.scale.stream.PATIENCE", 3)
    for path in folder.rglob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    splits = stream_images(tmp_path, 16, workers=1)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="3 images in a row cannot be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        epoch(splits)


@pytest.mark.parametrize("make, message", [
    (lambda path: path.mkdir(), "holds no images"),
    (lambda path: (path.mkdir(), picture(0).save(path / "one.png")), "holds one image; two are needed"),
    (lambda path: None, "there is no folder or tar file"),
    (lambda path: path.write_bytes(b""), "cannot be read as a tar file"),
    (lambda path: path.write_bytes(b"no tar" * 1000), "cannot be read as a tar file"),
    (lambda path: tarfile.open(path, "w:gz").close(), "that is not compressed"),
    (lambda path: tarfile.open(path, "w").close(), "holds no images; two"),
])
def test_what_cannot_be_streamed_is_said(make, message, tmp_path):
    make(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        stream_images(tmp_path / "source", 16)


def test_a_list_of_no_shards_is_said():
    with pytest.raises(DataError, match=r"^0 shards holds no image"):
        stream_images([], 16)


def test_a_shard_that_was_cut_is_named(shards, tmp_path):
    whole = (shards / "train-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(DataError, match=r"cut\.tar"):
        stream_images(tmp_path, 16, workers=0)


def test_a_shard_with_a_damaged_header_is_named(shards, tmp_path):
    data = bytearray((shards / "train-000.tar").read_bytes())
    with tarfile.open(shards / "train-000.tar") as tar:
        third = tar.getmembers()[2].offset
    data[third : third + 300] = bytes(b ^ 90 for b in data[third : third + 300])
    (tmp_path / "hurt.tar").write_bytes(data)
    with pytest.raises(DataError, match=rf"hurt\.tar .*damaged at byte {third:,}"):
        stream_images(tmp_path, 16, workers=0)


def workers():
    """The processes of workers that were not forked."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):                        # it ends meanwhile
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("when", ["while they start", "while they read"])
def test_workers_outlive_a_ctrl_c(when, folder, monkeypatch):
    """However they are started: a terminal sends it to all processes."""
    monkeypatch.setattr("dcae_lib.scale.stream.start_method", lambda: "spawn")
    told = []

    def tell():
        while not (found := workers()):
            time.sleep(0.01)
        told.extend(found)
        for worker in told:
            worker.send_signal(signal.SIGINT)

    batches = stream_images(folder, 16, workers=1).train.batches(9, torch.Generator().manual_seed(0))
    early = threading.Timer(0.3, tell)                      # a worker takes seconds to import torch
    if when == "while they start":
        early.start()
    first = next(batches)
    if when == "while they start":
        early.join()
    else:
        tell()
    assert len(told) == 1 and len(first) == 9 and sum(map(len, batches)) == 72


def test_workers_stay_for_the_next_epoch_and_end_with_the_stream(folder, monkeypatch):
    fresh = [epoch(stream_images(folder, 16), seed=seed) for seed in (1, 2)]
    monkeypatch.setattr("dcae_lib.scale.stream.start_method", lambda: "spawn")
    splits = stream_images(folder, 16, workers=1)
    assert same(epoch(splits, seed=1), fresh[0])
    assert same(epoch(copy.deepcopy(splits), seed=1), fresh[0])                 # a copy starts workers of its own
    stayed = workers()
    assert len(stayed) == 1 and same(epoch(splits, seed=2), fresh[1]) and workers() == stayed
    del splits
    gc.collect()
    psutil.wait_procs(stayed, timeout=10)
    assert not workers()


def test_two_epochs_at_once_and_one_that_was_left_do_not_meet(folder):
    splits = stream_images(folder, 16)
    fresh = [epoch(stream_images(folder, 16, workers=0), seed=seed) for seed in (1, 2)]
    assert same(epoch(splits, seed=1), fresh[0])
    both = zip(*(splits.train.batches(7, torch.Generator().manual_seed(seed)) for seed in (1, 2)), strict=True)
    assert all(same(got, wanted) for got, wanted in zip(zip(*both), fresh))
    next(splits.train.batches(7, torch.Generator().manual_seed(3)))
    assert same(epoch(splits, seed=2), fresh[1])


@pytest.mark.parametrize("crop", [0, -3, (), (16, 0), 16.0, "16", True])
def test_a_crop_must_be_a_side(crop, folder):
    with pytest.raises(ValueError, match="crop must be "):
        stream_images(folder, crop)


def test_a_crop_may_be_a_number_of_numpy(folder):
    assert stream_images(folder, np.int64(16), workers=0).train.crops == (16,)


def test_nothing_is_unpacked_and_links_in_a_shard_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for i, name in enumerate(["../../escape.png", "/absolute.png", "fine.png"]):
            file = io.BytesIO()
            picture(i).save(file, "PNG")
            member = tarfile.TarInfo(name)
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, os.path.abspath(__file__)
        tar.addfile(link)
    before = sorted(Path(tmp_path.parent).iterdir())
    assert len(Files(tmp_path)) == 3                        # the link is none of them; the names lead nowhere
    epoch(stream_images(tmp_path, 16, workers=0), 1)
    assert sorted(Path(tmp_path.parent).iterdir()) == before and [p.name for p in tmp_path.iterdir()] == ["evil.tar"]
