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

from dcae_lib.loop import SingleProcess
from dcae_lib.scale.parallel import Processes, own_device, processes, rank0_first
from dcae_lib.training import Callback

if sys.platform == "win32":
    pytest.skip("torchrun's store needs a libuv that torch for Windows comes without", allow_module_level=True)

SCRIPT = Path(__file__).parent / "several.py"
ROOT = SCRIPT.parents[2]


def start(count, what, folder, *more, options=()):
    """Start several.py in one process, or in `count` under torchrun."""
    folder.mkdir(parents=True, exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--rdzv-backend", "c10d", *options]
    torchrun += ["--rdzv-endpoint", "127.0.0.1:0"]
    command = [sys.executable, *(torchrun if count > 1 else []), str(SCRIPT), what, str(folder), *more]
    environment = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=environment, cwd=ROOT, **output)


def end(process):
    """Wait for the exit status, and all that was written to the screen."""
    text = process.communicate(timeout=600)[0]
    return process.returncode, text


def left(folder):
    """Return what each process left."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


def wait_for_step(folder, step, process):
    """Wait until a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 300
    while not any(int(path.name[:9]) >= step for path in folder.glob("out/checkpoints/*.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def worker(process):
    """Return a random one of the processes that torchrun started, or the process itself."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # one that has just ended
            found += [child] if "RANK" in child.environ() else []
    return random.choice(found or [process])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])  # of three numbers the order of a sum matters
def test_killed_training_resumes_bit_for_bit(count, tmp_path):
    whole, killed, steps = tmp_path / "whole", tmp_path / "killed", sorted(random.sample(range(1, 140), 3))
    code, text = end(start(count, "saves", whole))
    assert code == 0, text
    process = start(count, "saves", killed, options=["--max-restarts=3"])
    for step in steps:
        wait_for_step(killed, step, process)
        worker(process).kill()
        if count == 1:
            assert end(process)[0] == -signal.SIGKILL
            process = start(count, "saves", killed)
    code, text = end(process)
    assert code == 0, text
    for one, other in zip(left(whole), left(killed), strict=True):
        assert (one["bits"], one["history"]) == (other["bits"], other["history"])
        assert one["bits"] == left(whole)[0]["bits"] and one["starts"] == [0]
        assert len(other["starts"]) == 4 and all(a <= b for a, b in zip(steps, other["starts"][1:]))
    sessions = json.loads((killed / "out" / "history.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [count] * 4


@pytest.mark.slow
def test_several_processes_end_in_float64_where_one_does(tmp_path):
    weights, histories = [], []
    for count in (1, 3):
        code, text = end(start(count, "float64", tmp_path / str(count)))
        assert code == 0, text
        weights.append(torch.load(tmp_path / str(count) / "weights.pt", weights_only=True))
        histories += [run["history"] for run in left(tmp_path / str(count))]
    assert len({run["bits"] for run in left(tmp_path / "3")}) == 1
    assert (weights[0] - weights[1]).abs().max() < 1e-6
    for history in histories[1:]:  # losses are means over all images, and so are metrics, though each evaluates a part
        for row, alone in zip(history, histories[0], strict=True):
            assert row == pytest.approx(alone, abs=1e-7)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_another_number_resumes(tmp_path):
    process = start(2, "saves", tmp_path)
    wait_for_step(tmp_path, 30, process)
    process.send_signal(signal.SIGINT)
    code, text = end(process)
    assert code != 0 and text.count("the same command resumes there") == 1, text
    code, text = end(start(1, "saves", tmp_path))
    assert code == 0 and len(left(tmp_path)[0]["starts"]) == 2, text


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, message",
    [
        (["NaN"], "lower the learning rate"),
        (["full disk"], "the checkpoint of step 1 could not be written"),
        (["callback"], "No space left on device"),
        (["images on rank 1"], "20 images in a row cannot be read"),
        (["dcae", "--lr", "-1"], "lr must be above 0"),
        (["dcae", "--dataset", "nowhere"], "nowhere is not a folder"),
        (["dcae", "--model", '{"channels": [3]}'], "channels must be two or more"),
    ],
)
def test_errors_are_said_once_and_without_a_traceback(what, message, tmp_path):
    what, *more = what
    more = ["train", "--out", str(tmp_path / "out"), *more] if more else []
    code, text = end(start(2, what, tmp_path, *more))
    assert code == 1 and text.count(message) == 1, text
    assert "Traceback" not in text.partition("torch/distributed/elastic")[0], text  # what follows is torchrun's report


@pytest.mark.slow
def test_only_rank_0_writes(tmp_path):
    code, text = end(start(2, "apart", tmp_path))
    assert code == 0, text
    files = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("out-*/*")}
    names = ("model.safetensors", "config.json", "history.json", "README.md", "epochs")
    assert files == {("out-0", name) for name in names}


# ---- in this process


def test_weighted_parts_of_a_batch_make_its_mean():
    for size in range(1, 9):
        ranks = [Processes(rank, size) for rank in range(size)]
        for count in range(1, 20):
            numbers = torch.randn(count, dtype=torch.float64)
            parts = [numbers[rank.shard(torch.arange(count))] for rank in ranks]
            weights = [rank.weight(count) for rank in ranks]
            mean = sum(part.mean() * weight for part, weight in zip(parts, weights)) / size
            assert mean == pytest.approx(numbers.mean().item(), abs=1e-12)
            assert sum(len(part) for part, weight in zip(parts, weights) if weight) == count


@pytest.fixture
def group(monkeypatch):
    """A process group of this process alone, as a program may have made it before it trains."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_group_that_exists_is_used_and_left(group):
    with processes() as (parallel, device):
        assert (parallel.rank, parallel.size, device) == (0, 1, torch.device("cpu"))
        assert rank0_first(parallel, lambda: "done") == parallel.on_rank0(lambda: "done") == "done"
        with pytest.raises(ZeroDivisionError):
            parallel.on_rank0(lambda: 1 / 0)
        Callback(lambda state: lambda: "cannot be pickled", parallel).after_epoch(None)
    assert dist.is_initialized()


def test_several_processes_without_torchrun_are_refused(monkeypatch):
    with processes() as (parallel, _):
        assert type(parallel) is SingleProcess
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="start them with torchrun"), processes():
        pass


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("DCAE_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device(None) == torch.device("cuda", 1) and own_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="not on 'mps'"):
        own_device("mps")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="there are 2 GPUs; start as many processes, or train on the cpu"):
        own_device(None)
