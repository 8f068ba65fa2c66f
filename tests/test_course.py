"""The first line of a notebook: where it writes."""

from dcae_lib.course import begin


def test_a_notebook_writes_where_it_is_told(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("HOME", str(tmp_path))
    begin("00", out="~/out").record(psnr=38.2)
    assert (tmp_path / "out" / "00.json").read_text() == '{\n "psnr": 38.2\n}\n'
