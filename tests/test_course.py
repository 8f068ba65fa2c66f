"""The first line of a notebook: where it writes."""

import pytest

from dcae_lib.course import begin
from dcae_lib.data import DataError


def test_a_notebook_writes_where_it_is_told(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("HOME", str(tmp_path))
    begin("00", out="~/out").record(psnr=38.2)
    assert (tmp_path / "out" / "00.json").read_text() == '{\n "psnr": 38.2\n}\n'


def test_a_folder_that_takes_no_files_is_named_with_what_to_set(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/out cannot be written to \(Not a directory\); set out to another"):
        begin("00", out=str(tmp_path / "file" / "out"))
