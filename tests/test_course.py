"""The first line of a notebook and its exercises: where it writes, and what is right."""

import torch

from dcae_lib.course import begin, check


def test_a_notebook_writes_where_it_is_told(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("HOME", str(tmp_path))
    begin("00", out="~/out").record(psnr=38.2)
    assert (tmp_path / "out" / "00.json").read_text() == '{\n "psnr": 38.2\n}\n'


def test_an_answer_is_right_or_not_yet(capsys):
    for answer in ((128, 1024), (128, 31), (None, None)):
        check("02.1", *answer)
    check("01.1", lambda z, r: None)
    check("01.1", torch.nn.functional.pixel_shuffle)
    check("01.1", lambda z, r: z.view(0))
    said = capsys.readouterr().out.splitlines()
    assert said[:5] == ["right", "not yet", "not yet", "not yet", "right"] and said[5].startswith(
        "not yet: RuntimeError"
    )
