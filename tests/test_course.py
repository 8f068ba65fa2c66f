"""The first line of a notebook and its exercises: where it writes, and what is right."""

import torch

from dcae_lib.course import begin, check


def test_a_notebook_writes_where_it_is_told(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("HOME", str(tmp_path))
    begin("00", out="~/out").record(psnr=38.2)
    assert (tmp_path / "out" / "00.json").read_text() == '{\n "psnr": 38.2\n}\n'


def test_an_answer_is_right_or_not_yet(capsys):
    for answer in ((128, 1024), (torch.tensor([128]), [1024.0]), (lambda: (128, 1024),)):
        check("02.1", *answer)
    for answer in ((128, 1023), (1024, 128), (128,), (None, None), (lambda: None,), (torch.zeros(2, 3), [[1], [2, 3]])):
        check("02.1", *answer)
    assert capsys.readouterr().out.split("\n") == ["right"] * 3 + ["not yet"] * 6 + [""]
