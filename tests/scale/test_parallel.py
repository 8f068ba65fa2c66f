"""Training in several processes under torchrun: the same weights in all, one writer, and kills survived."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from several import LONG, PICTURES, in_float64, untimed, weights

from dcae_lib import train
from dcae_lib.loop import SingleProcess
from dcae_lib.scale.parallel import processes, rank0_first
from dcae_lib.training import Callback

if sys.platform == "win32":
    pytest.skip("torchrun's store needs a libuv that torch for Windows comes without", allow_module_level=True)

ROOT = Path(__file__).parents[2]


def start(count, what, folder):
    """Start several.py in `count` processes under torchrun."""
    folder.mkdir(exist_ok=True)
    torchrun = f"-m torch.distributed.run --nproc-per-node {count} --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0"
    torchrun += f" --max-restarts {3 if what == 'saves' else 0}"
    command = [sys.executable, *torchrun.split(), "tests/scale/several.py", what, str(folder)]
    environment = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=environment, cwd=ROOT, **output)


def end(process, status=0):
    """Wait for a process to end as expected, and return all that it wrote to the screen."""
    text = process.communicate(timeout=600)[0]
    assert process.returncode == status, text
    return text


def left(folder):
    """Return what each process left."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


def newest(folder):
    return max((int(path.name[:9]) for path in folder.glob("out/checkpoints/*.safetensors")), default=0)


def wait_for_step(step, folder, process):
    """Wait until a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 300
    while newest(folder) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def worker(process):
    """Return a random one of the processes that torchrun started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # one that has just ended
            found += [child] if "RANK" in child.environ() else []
    return random.choice(found)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])  # of three numbers the order of a sum matters
def test_killed_training_resumes_bit_for_bit(count, tmp_path):
    whole, killed, kills = tmp_path / "whole", tmp_path / "killed", 2
    end(start(count, "saves", whole))
    process = start(count, "saves", killed)
    for _ in range(kills):
        # The processes that a kill leaves behind may save two more steps; the others are saved by new ones.
        wait_for_step(newest(killed) + random.randrange(3, 40), killed, process)
        worker(process).kill()
    end(process)
    for one, other in zip(left(whole), left(killed), strict=True):
        assert (one["bits"], one["history"]) == (other["bits"], other["history"])
        assert one["bits"] == left(whole)[0]["bits"] and one["starts"] == [0] and len(other["starts"]) == kills + 1
    sessions = json.loads((killed / "out" / "history.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [count] * (kills + 1)


@pytest.mark.slow
def test_several_processes_end_in_float64_where_one_does(tmp_path):
    end(start(3, "float64", tmp_path))
    alone, several = in_float64(), left(tmp_path)
    assert (torch.load(tmp_path / "0.pt", weights_only=True) - weights(alone)).abs().max() < 1e-6
    assert len(several) == 3 and len({run["bits"] for run in several}) == 1
    for run in several:  # losses are means over all images, and so are metrics, of which each process measures a part
        for row, expected in zip(run["history"], untimed(alone.history), strict=True):
            assert row == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_another_number_resumes(tmp_path, one_thread):
    process = start(2, "saves", tmp_path)
    wait_for_step(30, tmp_path, process)
    process.send_signal(signal.SIGINT)
    end(process, 1)
    assert [run["starts"] for run in left(tmp_path)] == [[0], [0]]
    assert train(LONG, tmp_path / "out", PICTURES).sessions[-1]["step"] == left(tmp_path)[0]["step"] >= 30


MESSAGES = "lr must be above 0|nowhere is not a folder|channels must be two or more|lower the learning rate|no picture|"
MESSAGES += "the disk is full|20 images in a row cannot be read"


@pytest.mark.slow
def test_each_error_is_said_once_and_without_a_traceback(tmp_path):
    text = end(start(2, "errors", tmp_path), 1)
    assert "Traceback" not in text.partition("20 images")[0], text
    assert [text.count(message) for message in MESSAGES.split("|")] == [1] * 7, text


# ---- in this process


def test_group_that_exists_is_used_and_left(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with processes() as (parallel, device):
            assert (parallel.rank, parallel.size, device) == (0, 1, torch.device("cpu"))
            assert rank0_first(parallel, lambda: "done") == parallel.on_rank0(lambda: "done") == "done"
            with pytest.raises(ZeroDivisionError):
                parallel.on_rank0(lambda: 1 / 0)
            Callback(lambda state: lambda: "cannot be pickled", parallel).after_epoch(None)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_an_empty_world_size_is_that_of_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    with processes("cpu") as (parallel, device):
        assert type(parallel) is SingleProcess and device.type == "cpu"
