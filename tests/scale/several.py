"""What tests/test_distributed.py runs under torchrun, or alone: `several.py WHAT FOLDER`. Each process leaves <rank>.json."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import dcae_lib.runs.checkpoint
import dcae_lib.soap
import dcae_lib.scale.stream
from dcae_lib import DCAE, SOAP, ImageSet, Splits, TrainConfig, evaluate, load_images, to_model, train
from dcae_lib.scale.parallel import world
from dcae_lib.files import resource
from dcae_lib.training import Task, fit, keep_pictures, save_run, status
from dcae_lib.training import main as main_of_train

WHAT, FOLDER = sys.argv[1], Path(sys.argv[2])
RANK = int(os.environ.get("RANK", "0"))


def few(splits: Splits, count: int) -> Splits:
    """The first images only, and 51 to test on."""
    images = splits.train.images[:count]
    train = ImageSet(images, None, "few", hashlib.sha256(images.numpy().tobytes()).hexdigest())
    return Splits(train, ImageSet(splits.test.images[:51], None, "test", splits.test.sha256))


def leave(model: torch.nn.Module, **more) -> None:
    """Write what this process holds in the end."""
    numbers = torch.cat([p.detach().flatten() for p in model.parameters()])
    bits = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
    (FOLDER / f"{RANK}.json").write_text(json.dumps(dict(bits=bits, **more)))
    if RANK == 0:
        torch.save(numbers, FOLDER / "weights.pt")


def steps(dtype: torch.dtype) -> None:
    """66 steps; the last batch of an epoch is one image, so that all processes but the first have none of it."""
    def loss(model, x):
        return F.l1_loss(model(x.to(dtype)), x.to(dtype))

    def score(model, images):
        x = to_model(images.images).to(dtype)
        with torch.no_grad():
            return dict(l1=(model(x) - x).abs().mean().item())

    task = Task("l1", lambda: DCAE(groups=1).to(dtype), loss, score, save_run)
    # Rounding makes tiny gradients where there are none; beside the default eps of 1e-8 they are steps, and grow.
    config = TrainConfig(epochs=2, batch_size=30, lr=1e-2, optimizer_args=dict(eps=1e-6), model=dict(groups=1))
    splits = few(load_images("sample"), 961)
    with world() as processes:
        run = fit(task, config, None, splits, processes=processes)
    leave(run.model, history=[{k: v for k, v in row.items() if "l1" in k} for row in run.history])


def cli(config: TrainConfig, save_every: float = 60.0, splits: Splits | None = None, after_epoch=None, out: str = "out") -> int:
    kept = []

    def do():
        kept.append(train(config, FOLDER / out if out else None, splits, after_epoch, save_every))
        return kept[0]

    code = status(do, lambda run: "done")
    if kept:
        leave(kept[0].model, starts=len(kept[0].sessions), interrupted=kept[0].interrupted)
    return code


def main() -> int:
    torch.set_num_threads(1)
    config = TrainConfig(epochs=8, batch_size=20, lr=1e-2, model=dict(groups=1, dropout=0.1))
    splits = few(load_images("sample"), 500)                # 25 steps an epoch
    if WHAT in ("float64", "float32"):
        steps(getattr(torch, WHAT))
    elif WHAT == "saved":                                   # a checkpoint every 10 steps, of 200
        return cli(config, 0.0, splits, keep_pictures(FOLDER / "out", splits.test))
    elif WHAT == "apart":                                   # each process has a folder of its own to write to
        return cli(TrainConfig(epochs=1), 0.0, splits, keep_pictures(FOLDER / f"out-{RANK}", splits.test), f"out-{RANK}")
    elif WHAT == "nowhere":                                 # only the first has one
        return cli(TrainConfig(epochs=1), splits=splits, out="" if RANK else "out")
    elif WHAT == "command":
        return main_of_train(["--out", str(FOLDER / "out"), *sys.argv[3:]])
    elif WHAT == "another-lr":
        return cli(TrainConfig(epochs=1, lr=1e-2 * (1 + RANK)), splits=splits)
    elif WHAT == "other-images":
        return cli(TrainConfig(epochs=1), splits=few(splits, 500 - RANK))
    elif WHAT == "missing":
        return cli(TrainConfig(epochs=1, dataset="sample" if RANK == 0 else str(FOLDER / "nowhere")))
    elif WHAT == "broken":
        return cli(TrainConfig(epochs=1, lr=1e30), splits=splits)
    elif WHAT == "another-torch":
        torch.__version__ = f"2.{RANK}"
        return cli(TrainConfig(epochs=1), splits=splits)
    elif WHAT == "full-disk":
        def full(path_and_data):
            raise OSError(28, "No space left on device")

        dcae_lib.runs.checkpoint.write_whole = full
        return cli(TrainConfig(epochs=1), 0.0, splits)
    elif WHAT == "callback":
        def show(run):
            raise OSError("the picture cannot be written")

        return cli(TrainConfig(epochs=1), splits=splits, after_epoch=show)
    elif WHAT == "broken-images":                           # of two processes the second one meets them
        if RANK:                                            # forked, its workers inherit this
            dcae_lib.scale.stream.start_method = lambda: "fork"
            dcae_lib.scale.stream.Crops.__getitem__ = lambda self, key: (None, ["broken"])
        return main_of_train(["--out", str(FOLDER / "out"), "--dataset", str(resource("photos")), "--crop", "32", "--epochs", "1"])
    elif WHAT == "slow":
        def slow(model, x):
            time.sleep(3)
            return F.l1_loss(model(x), x)

        def do():
            task = Task("l1", lambda: DCAE(groups=1), slow, evaluate, save_run)
            with world() as processes:
                return fit(task, config, FOLDER / "out", splits, save_every=0.0, processes=processes)

        return status(do, lambda run: "done")
    elif WHAT == "dies-after":
        code = cli(TrainConfig(epochs=1, batch_size=100), splits=splits, after_epoch=lambda run: print("epoch 1 is done"))
        if RANK and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            print("dies now", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return code
    elif WHAT == "large":                                   # factors that the processes share
        torch.manual_seed(0)
        weights = torch.nn.ParameterList(torch.randn(300, 260) for _ in range(3))
        with world() as processes:
            optimizer, calls = SOAP(weights.parameters(), lr=1e-2, precondition_frequency=2), []
            optimizer.processes = processes
            turn = dcae_lib.soap.power_iteration
            dcae_lib.soap.power_iteration = lambda GG, Q: calls.append(len(GG)) or turn(GG, Q)
            for _ in range(9):
                sum((weight @ torch.randn(260, 40)).square().mean() for weight in weights).backward()
                optimizer.step()
                optimizer.zero_grad()
        leave(weights, calls=calls)
    elif WHAT == "evaluate":                                # in an odd number of parts
        from dcae_lib.training import Run, score

        model, test = DCAE.from_pretrained(), ImageSet(load_images("sample").test.images[:25], None, "25", "")
        with world() as processes:
            task = Task("l1", None, None, evaluate, None)
            leave(model, found=score(task, Run(config, model, [], []), test, processes), alone=evaluate(model, test))
    return 0


if __name__ == "__main__":
    sys.exit(main())
