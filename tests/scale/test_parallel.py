"""Training in several processes under torchrun, on real sockets: the same weights, one writer, kills survived."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from dcae_lib.scale.parallel import AGREE_EVERY, AGREE_WITHIN, Meetings, World, world

if sys.platform == "win32":
    pytest.skip("torchrun's store needs a libuv that torch for Windows comes without", allow_module_level=True)

SCRIPT = Path(__file__).parent / "several.py"
ROOT = SCRIPT.parents[2]


def command(processes, what, folder, *options, more=()):
    folder.mkdir(parents=True, exist_ok=True)
    alone = [sys.executable]
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "127.0.0.1:0", *options]
    return [*(alone if processes == 1 else several), str(SCRIPT), what, str(folder), *more]


def start(*arguments, more=()):
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        command(*arguments, more=more), env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(*arguments, more=()):
    """Its exit status and all that it wrote to the screen."""
    process = start(*arguments, more=more)
    text = process.communicate(timeout=300)[0]
    return process.returncode, text


def left(folder):
    """What each process left."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True).double()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training in one process, in both precisions."""
    folders = {}
    for precision in ("float64", "float32"):
        folders[precision] = tmp_path_factory.mktemp(precision)
        code, text = run(1, precision, folders[precision])
        assert code == 0, text
    return folders


@pytest.mark.parametrize("processes", [2, 4])
def test_in_float64_several_processes_end_where_one_does(processes, alone, tmp_path):
    code, text = run(processes, "float64", tmp_path)
    assert code == 0, text
    assert (weights(tmp_path) - weights(alone["float64"])).abs().max() < 1e-6
    for mine, one in zip(left(tmp_path)[0]["history"], left(alone["float64"])[0]["history"]):
        assert mine == pytest.approx(one, abs=1e-7)                     # losses and test metrics are means over all


@pytest.mark.parametrize("processes", [2, 4])
def test_in_float32_every_process_holds_the_same_bits(processes, alone, tmp_path):
    code, text = run(processes, "float32", tmp_path)
    assert code == 0, text
    found = left(tmp_path)
    assert len(found) == processes and len({one["bits"] for one in found}) == 1
    # They are not those of one process: SOAP carries rounding on, which is why the test above is in float64. They are as good.
    assert (weights(tmp_path) - weights(alone["float32"])).abs().max() > 1e-6
    assert found[0]["history"][-1]["l1"] == pytest.approx(left(alone["float32"])[0]["history"][-1]["l1"], rel=0.05)


def test_large_factors_are_shared_and_every_process_gets_the_same_bases(tmp_path):
    code, text = run(2, "large", tmp_path / "two")
    assert code == 0, text
    assert run(1, "large", tmp_path / "one")[0] == 0
    one, two = left(tmp_path / "one"), left(tmp_path / "two")
    assert [entry["bits"] for entry in two] == [one[0]["bits"]] * 2
    assert one[0]["calls"] == [3] * 10 and two[0]["calls"] == [2] * 10  # factors of 300 and of 260, refreshed five times


def test_each_process_evaluates_a_part_and_all_know_the_mean(tmp_path):
    code, text = run(4, "evaluate", tmp_path)
    assert code == 0, text
    for entry in left(tmp_path):
        assert entry["found"] == pytest.approx(entry["alone"], rel=1e-6)


def undisturbed(folder, processes=2):
    code, text = run(processes, "saved", folder)
    assert code == 0, text
    return left(folder)


def checkpoint_after(folder, step, process):
    """Wait until the checkpoint of a step is there."""
    for _ in range(1200):
        if any(int(path.name[:9]) >= step for path in (folder / "out" / "checkpoints").glob("*.safetensors")):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("no checkpoint was written")


def workers(process):
    """The processes that torchrun started, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):                        # one that has just ended
            if SCRIPT.name in " ".join(child.cmdline()) and "RANK" in child.environ():
                found[int(child.environ()["RANK"])] = child
    return found


@pytest.mark.parametrize("processes", [2, 3])              # of three numbers the order of the sum matters
def test_a_killed_process_is_started_again_and_nothing_is_different_in_the_end(processes, tmp_path):
    expected = undisturbed(tmp_path / "whole", processes)
    process = start(processes, "saved", tmp_path / "killed", "--max-restarts=1")
    checkpoint_after(tmp_path / "killed", 30, process)
    workers(process)[1].kill()
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    found = left(tmp_path / "killed")
    assert [one["bits"] for one in found] == [one["bits"] for one in expected]
    assert {one["starts"] for one in expected} == {1} and {one["starts"] for one in found} == {2}
    whole, killed = (json.loads((tmp_path / name / "out" / "history.json").read_text()) for name in ("whole", "killed"))
    assert [row["l1"] for row in whole["history"]] == [row["l1"] for row in killed["history"]]
    assert [session["processes"] for session in killed["sessions"]] == [processes] * 2
    assert 30 <= killed["sessions"][1]["step"] < 200


def test_a_process_that_dies_after_the_end_does_not_start_the_training_anew(tmp_path):
    code, text = run(2, "dies-after", tmp_path, "--max-restarts=1")
    assert code == 0, text
    assert {one["starts"] for one in left(tmp_path)} == {1} and len({one["bits"] for one in left(tmp_path)}) == 1
    assert text.count("epoch 1 is done") == 1 and text.count("dies now") == 1, text


def test_where_steps_are_slow_ctrl_c_still_ends_in_time(tmp_path):
    process = start(2, "slow", tmp_path)                    # 3 s a step: ten of them would take longer than torchrun waits
    checkpoint_after(tmp_path, 1, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=300)[0]
    assert time.monotonic() - began < 25 and "the same command goes on from there" in text, text


def test_ctrl_c_ends_all_processes_with_a_checkpoint_and_another_number_of_them_goes_on(tmp_path):
    process = start(2, "saved", tmp_path)
    checkpoint_after(tmp_path, 30, process)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert text.count("the same command goes on from there") == 1, text
    code, text = run(1, "saved", tmp_path)
    assert code == 0, text
    assert left(tmp_path)[0]["starts"] == 2 and not left(tmp_path)[0]["interrupted"]


@pytest.mark.parametrize("what, message", [
    ("another-lr", "lr is 0.01 in process 0, 0.02 in process 1"),
    ("other-images", "few is 500 images"),
    ("missing", "process 1: "),
    ("broken", "lower the learning rate"),
    ("nowhere", "out is given in process 0, not given in process 1"),
    ("another-torch", "torch is "),
    ("full-disk", "could not be written"),
    ("callback", "the picture cannot be written"),
    ("broken-images", "process 1: 20 images in a row"),
])
def test_what_goes_wrong_is_said_once_and_without_a_traceback(what, message, tmp_path):
    code, text = run(2, what, tmp_path)
    ours = text.partition("torch/distributed/elastic")[0]   # what follows is torchrun's own report
    assert code == 1
    assert text.count(message) == 1 and "Traceback" not in ours, text


@pytest.mark.parametrize("option, message", [
    (["--lr", "-1"], "lr must be above 0"), (["--dataset", "nowhere"], "nowhere is not a folder"),
    (["--device", "mps"], "not on 'mps'"), (["--model", '{"channels": [3]}'], "channels"),
    (["--crop", "30", "--dataset", "data/photos"], "a crop must be a multiple of 4"),
])
def test_what_is_wrong_in_the_command_is_said_once_and_without_a_traceback(option, message, tmp_path):
    code, text = run(2, "command", tmp_path, more=option)
    ours = text.partition("torch/distributed/elastic")[0]    # what follows is torchrun's own report
    assert code == 1 and text.count(message) == 1 and "Traceback" not in ours, text


def test_only_the_first_process_writes(tmp_path):
    """Each has a folder of its own to write to, and only that of the first one comes to be."""
    code, text = run(2, "apart", tmp_path)
    assert code == 0, text
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"out-0"}
    names = {path.relative_to(tmp_path / "out-0").parts[0] for path in tmp_path.rglob("out-0/**/*") if path.is_file()}
    assert names == {"model.safetensors", "config.json", "history.json", "README.md", "epochs"}


def test_without_torchrun_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="start the training with torchrun"), world():
        pass


def test_restarts_on_several_machines_need_a_setting(monkeypatch):
    for name, value in dict(WORLD_SIZE="4", LOCAL_RANK="0", GROUP_WORLD_SIZE="2", TORCHELASTIC_MAX_RESTARTS="3").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"), world():
        pass


# ---- one process, and arithmetic


def test_a_process_alone_asks_nobody():
    with world() as processes:
        assert processes == World(0, 1)
    x = torch.arange(5.0)
    assert processes.mean(x) is x and processes.gather("a") == ["a"] and processes.any(True, False) == [True, False]
    assert processes.weight(7) == 1 and torch.equal(processes.mine(x), x)
    model = torch.nn.Linear(1, 1)
    assert processes.wrap(model) is model and not torch.distributed.is_initialized()


class TwiceAsSlow:
    """Two processes, of which the other one takes twice as long for a step."""

    size = 2

    @staticmethod
    def gather(seconds):
        return [seconds, 2 * seconds]


def meetings(monkeypatch, seconds, steps, processes=TwiceAsSlow, last=()):
    """After which of so many steps, of so many seconds each, the processes ask each other."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    plan, asked = Meetings(processes, 0), []
    for step in range(1, steps + 1):
        now[0] += seconds
        asked += [step] if plan.due(step, step in last) else []
    return asked


def test_processes_ask_each_other_every_few_steps_and_seconds(monkeypatch):
    assert meetings(monkeypatch, 0.001, 35) == [1, 1 + AGREE_EVERY, 1 + 2 * AGREE_EVERY, 1 + 3 * AGREE_EVERY]
    assert meetings(monkeypatch, AGREE_WITHIN / 7, 10) == [1, 4, 7, 10]             # three of the slower process fit in
    assert meetings(monkeypatch, 2 * AGREE_WITHIN, 3) == [1, 2, 3]
    assert meetings(monkeypatch, 0.001, 20, last=(5,)) == [1, 5, 5 + AGREE_EVERY]
    assert meetings(monkeypatch, 0.001, 4, World()) == [1, 2, 3, 4]


@settings(deadline=None)                                   # a busy core is no failure
@given(count=integers(1, 40), size=integers(1, 9))
def test_the_parts_of_a_batch_weighted_make_the_mean_of_the_whole(count, size):
    numbers = torch.randn(count, dtype=torch.float64)
    worlds = [World(rank, size) for rank in range(size)]
    parts = [numbers[one.mine(torch.arange(count))] for one in worlds]
    mean = sum(part.mean() * one.weight(count) for part, one in zip(parts, worlds)) / size
    assert mean == pytest.approx(numbers.mean().item(), abs=1e-12)
    assert sum(len(part) for part, one in zip(parts, worlds) if one.weight(count)) == count
