"""`dcae`: files to files, nothing lost or replaced unasked, and a sentence for what cannot be done."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from dcae_lib import Codec, load_images
from dcae_lib.codec.codec import main
from dcae_lib.files import resource


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def pixels():
    """Two small pictures, [H, W, 3]."""
    cat = np.array(Image.open(resource("photos") / "cat.webp").convert("RGB"))
    return {"cat": cat[80:100, 150:183], "frog": load_images("sample").test.images[6].permute(1, 2, 0).numpy()[:9, :12]}


@pytest.fixture
def folder(tmp_path, monkeypatch, pixels):
    """Where the command runs: it holds cat.png and frog.png."""
    monkeypatch.chdir(tmp_path)
    for name, picture in pixels.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return tmp_path


def read(path):
    return pil_to_tensor(Image.open(path))


def refused(arguments, capsys):
    """What stderr says of a command that makes no sense."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.startswith("usage: ") and not said.out
    return said.err


def test_the_command_writes_what_the_codec_makes_and_says_so_on_stdout(folder, pixels, codec):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "dcae_lib.codec", *arguments], cwd=folder, capture_output=True, text=True, timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    done = command("compress", "cat.png", "frog.png", "no.png", "--out", "deep/out", "--quality", "30")
    assert done.returncode == 1
    assert done.stderr == "no.png is not there\n1 of 3 files could not be done\n"
    lines = done.stdout.splitlines()
    for name, line in zip(pixels, lines, strict=True):
        data = (folder / "deep/out" / f"{name}.dcae").read_bytes()
        assert data == codec.compress(pixels[name], 30)
        H, W, _ = pixels[name].shape
        assert line.startswith(f"deep/out/{name}.dcae  {W}×{H}  {len(data)} bytes  {8 * len(data) / (H * W):.3f} bpp  ")
        assert line.endswith(" dB")
    done = command("decompress", "deep/out/cat.dcae", "deep/out/frog.dcae", "--out", "back")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "back/cat.png  33×20\nback/frog.png  12×9\n"
    for name in pixels:
        assert torch.equal(read(folder / "back" / f"{name}.png"), codec.decompress((folder / "deep/out" / f"{name}.dcae").read_bytes()))


def test_files_that_are_there_stay_unless_overwrite_is_said(folder, codec, pixels, capsys):
    (folder / "cat.dcae").write_text("mine")
    assert main(["compress", "cat.png", "frog.png", "--out", "."]) == 1
    said = capsys.readouterr()
    assert said.err == "cat.dcae is there already; --overwrite replaces it\n1 of 2 files could not be done\n"
    assert "frog.dcae" in said.out and (folder / "cat.dcae").read_text() == "mine"
    before = (folder / "cat.png").read_bytes()
    assert main(["compress", "cat.png", "--out", ".", "--overwrite"]) == 0
    assert (folder / "cat.dcae").read_bytes() == codec.compress(pixels["cat"], 50)
    assert main(["decompress", "cat.dcae", "--out", "."]) == 1
    assert "cat.png is there already" in capsys.readouterr().err and (folder / "cat.png").read_bytes() == before
    assert main(["decompress", "cat.dcae", "--out", ".", "--overwrite"]) == 0
    assert (folder / "cat.png").read_bytes() != before
    assert not list(folder.glob("*.partial"))


def test_what_cannot_be_read_is_named_and_the_others_are_done(folder, codec, capsys):
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "cat.png").read_bytes()[:900])
    (folder / "dir.png").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    assert main(["compress", "text.png", "cut.png", "dir.png", "deep.png", "cat.png", "--out", "out"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("out/cat.dcae") and said.out.count("\n") == 1
    *errors, last = said.err.splitlines()
    assert last == "4 of 5 files could not be done" and len(errors) == 4
    assert all(name in error for name, error in zip(["text.png", "cut.png", "dir.png", "deep.png"], errors))
    assert [path.name for path in (folder / "out").iterdir()] == ["cat.dcae"]

    data = (folder / "out/cat.dcae").read_bytes()
    for name, content in {"cut": data[:-3], "other": b"\xd1" + bytes([data[1] ^ 1]) + data[2:], "later": b"\xd2" + data[1:], "none": b""}.items():
        (folder / f"{name}.dcae").write_bytes(content)
    names = ["cut.dcae", "other.dcae", "later.dcae", "none.dcae", "out/cat.dcae", "gone.dcae", "dir.png"]
    assert main(["decompress", *names, "--out", "back"]) == 1
    said = capsys.readouterr()
    assert said.out == "back/cat.png  33×20\n" and [path.name for path in (folder / "back").iterdir()] == ["cat.png"]
    for text in ("cut.dcae: the checksum does not fit", "other.dcae: written with a model", "later.dcae: written by version 2",
                 "none.dcae: a compressed image has 8 bytes at least", "gone.dcae", "dir.png", "6 of 7 files could not be done"):
        assert text in said.err


@pytest.mark.parametrize("command, files", [
    ("compress", ["cat.png", "deep/cat.png"]), ("compress", ["cat.png", "cat.jpg"]), ("compress", ["cat.png", "cat.png"]),
    ("decompress", ["a/x.dcae", "b/x.dcae"]),
])
def test_two_files_of_one_name_are_refused_before_anything_is_written(command, files, folder, capsys):
    said = refused([command, *files, "--out", "out"], capsys)
    assert "more than one of the files would become out/" in said and not (folder / "out").exists()


@pytest.mark.parametrize("arguments, message", [
    (["compress", "cat.png", "--out", "out", "--quality", "101"], "--quality must be from 0 to 100, got 101"),
    (["compress", "cat.png", "--out", "out", "--quality", "-1"], "--quality must be from 0 to 100, got -1"),
    (["compress", "cat.png", "--out", "out", "--quality", "good"], "invalid int value: 'good'"),
    (["compress", "cat.png", "--out", "out", "--background", "rouge"], "--background: unknown color specifier: 'rouge'"),
    (["compress", "cat.png"], "required: --out"),
    (["compress", "--out", "out"], "required: files"),
    (["decompress", "cat.dcae", "--out", "out", "--quality", "5"], "unrecognized arguments: --quality 5"),
    (["squeeze", "cat.png", "--out", "out"], "invalid choice: 'squeeze'"),
    ([], "required: command"),
    (["compress", ".", "--out", "out"], "."),
    (["compress", "/", "--out", "out"], "/"),
])
def test_a_command_that_makes_no_sense_is_refused_with_its_usage(arguments, message, folder, capsys):
    assert message in refused(arguments, capsys)
    assert not (folder / "out").exists()


def test_a_transparent_picture_needs_a_background(folder, codec, capsys):
    Image.new("RGBA", (6, 5), (0, 0, 0, 0)).save(folder / "clear.png")
    assert main(["compress", "clear.png", "--out", "out"]) == 1
    assert "clear.png is transparent, and has no background yet" in capsys.readouterr().err
    assert main(["compress", "clear.png", "--out", "out", "--background", "#00ff00"]) == 0
    assert (folder / "out/clear.dcae").read_bytes() == codec.compress(Image.new("RGB", (6, 5), "#00ff00"), 50)


@pytest.mark.parametrize("mode, ending", [("CMYK", "tif"), ("L", "png"), ("P", "png"), ("1", "png")])
def test_pictures_of_other_colours_are_taken_as_they_look(mode, ending, folder, codec, capsys):
    image = Image.open(folder / "cat.png").convert(mode)
    image.save(folder / f"other.{ending}")
    assert main(["compress", f"other.{ending}", "--out", "out"]) == 0
    assert (folder / "out/other.dcae").read_bytes() == codec.compress(image.convert("RGB"), 50)


def test_a_batch_becomes_several_pictures(folder, codec, pixels, capsys):
    batch = np.stack([pixels["frog"], pixels["frog"][:, ::-1], pixels["frog"][::-1]])
    data = codec.compress(batch, 20)
    (folder / "many.dcae").write_bytes(data)
    (folder / "one.dcae").write_bytes(codec.compress(batch[:1], 20))
    assert main(["decompress", "many.dcae", "one.dcae", "--out", "out"]) == 0
    assert capsys.readouterr().out == "out/many-0.png and 2 more  12×9\nout/one-0.png and 0 more  12×9\n"
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["many-0.png", "many-1.png", "many-2.png", "one-0.png"]
    assert torch.equal(torch.stack([read(folder / f"out/many-{k}.png") for k in range(3)]), codec.decompress(data))
    (folder / "out/many-0.png").unlink()
    (folder / "out/many-1.png").write_text("mine")
    assert main(["decompress", "many.dcae", "--out", "out"]) == 1
    assert "many-1.png is there already" in capsys.readouterr().err
    assert (folder / "out/many-1.png").read_text() == "mine" and not (folder / "out/many-0.png").exists()


def test_another_model_is_taken_from_its_folder_and_a_wrong_folder_is_named(folder, codec, capsys):
    for wrong in ("nowhere", "cat.png"):
        assert main(["compress", "cat.png", "--out", "out", "--model", wrong]) == 1
        assert capsys.readouterr().err == f"{wrong} holds no config.json; save_pretrained(folder) writes it\n"
    assert not (folder / "out").exists()
    weights = folder / "weights"
    weights.mkdir()
    for name in ("config.json", "model.safetensors"):
        (weights / name).write_bytes((resource("codec_weights") / name).read_bytes())
    assert main(["compress", "cat.png", "--out", "out", "--model", "weights"]) == 0
    (weights / "model.safetensors").write_bytes(b"damaged")
    assert main(["decompress", "out/cat.dcae", "--out", "out", "--model", "weights"]) == 1
    assert "the model in weights cannot be loaded" in capsys.readouterr().err


def test_an_out_that_is_a_file_is_named(folder, capsys):
    assert main(["compress", "cat.png", "--out", "frog.png"]) == 1
    assert "frog.png" in capsys.readouterr().err


def test_a_file_that_is_larger_than_any_stream_is_not_even_read(folder, monkeypatch, capsys):
    with open(folder / "huge.dcae", "wb") as file:
        file.truncate(10**9)                                # takes no room
    assert main(["decompress", "huge.dcae", "--out", "out"]) == 1
    assert "huge.dcae has 1,000,000,000 bytes, more than any that the codec writes" in capsys.readouterr().err


def test_ctrl_c_leaves_only_whole_files(folder, monkeypatch, capsys):
    original = Codec.compress

    def interrupted(self, images, *arguments, **options):
        if images.shape[1] == 9:                            # the frog
            raise KeyboardInterrupt
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(Codec, "compress", interrupted)
    assert main(["compress", "cat.png", "frog.png", "--out", "out"]) == 130
    assert "interrupted; what was written is whole" in capsys.readouterr().err
    assert [path.name for path in (folder / "out").iterdir()] == ["cat.dcae"]


def test_a_batch_is_not_stopped_by_a_picture_that_it_would_not_write(folder, codec, pixels):
    (folder / "cat.dcae").write_bytes(codec.compress(torch.zeros(2, 3, 9, 9, dtype=torch.uint8)))
    before = (folder / "cat.png").read_bytes()
    assert main(["decompress", "cat.dcae", "--out", "."]) == 0
    assert read(folder / "cat-1.png").shape == (3, 9, 9) and (folder / "cat.png").read_bytes() == before


def test_a_batch_does_not_replace_what_the_same_command_wrote(codec, pixels, tmp_path, capsys):
    (tmp_path / "a-0.dcae").write_bytes(codec.compress(pixels["frog"], 40))
    (tmp_path / "a.dcae").write_bytes(codec.compress(np.stack([pixels["cat"]] * 2), 40))
    files = [str(tmp_path / name) for name in ("a-0.dcae", "a.dcae")]
    assert main(["decompress", *files, "--out", str(tmp_path / "out"), "--overwrite"]) == 1
    assert "a-0.png was written by this command, from another file" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a-0.png"]


def test_a_background_that_is_transparent_itself_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["compress", "x.png", "--out", str(tmp_path), "--background", "#ffffff80"])
    assert left.value.code == 2 and "#ffffff80 is transparent itself" in capsys.readouterr().err
