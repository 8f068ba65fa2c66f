"""`dcae compress` and `dcae decompress`: nothing lost or replaced unasked, and one line for each failure."""

import argparse

import pytest
import torch
from PIL import Image

from dcae_lib import Codec
from dcae_lib.__main__ import main
from dcae_lib.codec.command import add_commands
from dcae_lib.data import read_picture
from dcae_lib.files import resource


def run(command):
    """Run a command line as `dcae` does and return its exit status."""
    parser = argparse.ArgumentParser("dcae")
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args(command.split())
    return options.run(options)


def errors(command, capsys):
    """Return the last line that a command with invalid arguments writes to stderr."""
    with pytest.raises(SystemExit) as left:
        run(command)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and err.startswith("usage: ") and not out
    return err.splitlines()[-1]


@pytest.fixture
def pictures(cat, images):
    """Two small pictures, uint8 [3, H, W]."""
    return {"cat": cat[:, 80:100, 150:183], "frog": images[6, :, :9, :12]}


@pytest.fixture
def folder(tmp_path, monkeypatch, pictures):
    """The working directory, with cat.png and frog.png."""
    monkeypatch.chdir(tmp_path)
    for name, picture in pictures.items():
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written_and_described(folder, pictures, codec, capsys):
    assert run("compress cat.png frog.png no.png --out deep/out --quality 30") == 1
    out, err = capsys.readouterr()
    assert err.startswith("no.png ") and err.endswith("\n1 of 3 files failed\n")
    for (name, x), line in zip(pictures.items(), out.splitlines(), strict=True):
        data, (H, W) = (folder / f"deep/out/{name}.dcae").read_bytes(), x.shape[1:]
        assert data == codec.compress(x, 30)
        assert line.startswith(f"deep/out/{name}.dcae  {W}×{H}  {len(data)} bytes  {8 * len(data) / (H * W):.3f} bpp  ")
        assert line.endswith(" dB")
    assert run("decompress deep/out/cat.dcae deep/out/frog.dcae --out back") == 0
    assert capsys.readouterr() == ("back/cat.png  33×20\nback/frog.png  12×9\n", "")
    for name, x in pictures.items():
        assert torch.equal(read_picture(folder / f"back/{name}.png"), codec.decompress(codec.compress(x, 30)))


def test_existing_files_are_only_replaced_with_overwrite(folder, codec, pictures, capsys):
    (folder / "cat.dcae").write_text("mine")
    assert run("compress cat.png frog.png --out .") == 1
    out, err = capsys.readouterr()
    assert err == "cat.dcae exists; --overwrite replaces it\n1 of 2 files failed\n" and "frog.dcae" in out
    assert (folder / "cat.dcae").read_text() == "mine"
    assert run("compress cat.png --out . --overwrite") == 0
    assert (folder / "cat.dcae").read_bytes() == codec.compress(pictures["cat"])
    before = (folder / "cat.png").read_bytes()
    assert run("decompress cat.dcae --out .") == 1 and "cat.png exists" in capsys.readouterr().err
    assert (folder / "cat.png").read_bytes() == before
    assert run("decompress cat.dcae --out . --overwrite") == 0 and (folder / "cat.png").read_bytes() != before
    assert names(folder) == ["cat.dcae", "cat.png", "frog.dcae", "frog.png"]


def test_unreadable_files_are_named_and_the_others_converted(folder, codec, pictures, capsys):
    data, png = codec.compress(pictures["cat"]), (folder / "cat.png").read_bytes()
    files = {"text.png": b"text", "cut.png": png[:900], "cut.dcae": data[:-3], "old.dcae": b"\xd1" + data[1:]}
    for name, content in (files | {"other.dcae": data[:1] + bytes([data[1] ^ 1]) + data[2:], "ok.dcae": data}).items():
        (folder / name).write_bytes(content)
    assert run("compress text.png cut.png / cat.png --out out") == 1
    assert run("decompress cut.dcae other.dcae old.dcae gone.dcae . ok.dcae --out out") == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and names(folder / "out") == ["cat.dcae", "ok.png"]
    messages = """text.png |cut.png |/ cannot be read|3 of 4 files failed|cut.dcae: the checksum does not|
other.dcae: written with|old.dcae: written by version 1|gone.dcae|Is a directory|5 of 6 files"""
    assert all(text.strip() in line for text, line in zip(messages.split("|"), err.splitlines(), strict=True))


@pytest.mark.parametrize(
    "command, message",
    [
        ("compress cat.png --out out --quality good", "--quality: invalid int value: 'good'"),
        ("compress cat.png", "required: --out"),
        ("compress --out out", "required: files"),
        ("decompress cat.dcae --out out --quality 5", "unrecognized arguments: --quality 5"),
        ("compress cat.png deep/cat.png --out out", "2 of the files would become out/cat.dcae"),
        ("decompress a/x.dcae b/x.dcae --out out", "2 of the files would become out/x.png"),
    ],
)
def test_invalid_arguments_exit_with_2_and_write_nothing(command, message, folder, capsys):
    assert message in errors(command, capsys)
    assert not (folder / "out").exists()


def test_batch_becomes_numbered_pictures(folder, codec, pictures, capsys):
    frog = pictures["frog"]
    data = codec.compress(torch.stack([frog, frog.flip(1)]), 20)
    (folder / "many.dcae").write_bytes(data)
    (folder / "one.dcae").write_bytes(codec.compress(frog[None], 20))
    assert run("decompress many.dcae one.dcae --out out") == 0
    assert capsys.readouterr().out == "out/many-0.png and 1 more  12×9\nout/one-0.png and 0 more  12×9\n"
    assert names(folder / "out") == ["many-0.png", "many-1.png", "one-0.png"]
    decoded = torch.stack([read_picture(folder / f"out/many-{k}.png") for k in range(2)])
    assert torch.equal(decoded, codec.decompress(data))
    (folder / "out/many-0.png").unlink()
    assert run("decompress many.dcae --out out") == 1 and "many-1.png exists" in capsys.readouterr().err
    assert names(folder / "out") == ["many-1.png", "one-0.png"]  # all of a batch or none of it


def test_model_option_names_a_folder_of_weights(folder, capsys):
    assert main("compress cat.png --out out --model nowhere".split()) == 1
    assert "nowhere/config.json" in capsys.readouterr().err and not (folder / "out").exists()
    assert run(f"compress cat.png --out out --model {resource('photographs')}") == 0
    assert main("compress cat.png --out frog.png".split()) == 1 and "frog.png" in capsys.readouterr().err


def test_interrupt_leaves_complete_files_and_exits_with_130(folder, monkeypatch, capsys):
    compress = Codec.compress

    def interrupted(self, images, *arguments, **options):
        if images.shape[1] == 9:  # the frog
            raise KeyboardInterrupt
        return compress(self, images, *arguments, **options)

    monkeypatch.setattr(Codec, "compress", interrupted)
    assert main("compress cat.png frog.png --out out".split()) == 130
    assert "interrupted; every file is complete" in capsys.readouterr().err
    assert names(folder / "out") == ["cat.dcae"]


def test_paths_may_be_long_and_begin_at_home(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    name = "n" * 245
    (folder / "cat.png").rename(folder / f"{name}.png")
    assert run(f"compress ~/{name}.png --out=~/out") == 0 and names(folder / "out") == [f"{name}.dcae"]
