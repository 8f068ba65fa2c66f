"""Small trainings for tests: `several.py WHAT FOLDER`, alone or under torchrun, is there to be killed and broken."""

import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from dcae_lib import DCAE, ImageSet, Splits, TrainConfig, evaluate, train
from dcae_lib.data import DataError
from dcae_lib.loop import State, Task, fit
from dcae_lib.scale.parallel import processes
from dcae_lib.training import keep_pictures

RANK = int(os.environ.get("RANK", "0"))


def noise(count: int, name: str) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, None, name, f"the hash of {name}")


PICTURES = Splits(noise(30, "noise train"), noise(4, "noise test"))
# Everything that has a state: dropout draws numbers, SOAP remembers, and the last of an epoch's 8 batches is short.
MODEL = dict(channels=(4, 8), latent_channels=4, groups=4, dropout=0.1, stage_dropout=0.2)
SOAP = dict(optimizer="SOAP", optimizer_args=dict(precondition_frequency=3))
CONFIG = TrainConfig(epochs=2, batch_size=4, device="cpu", clip=0.5, model=MODEL, **SOAP)
LONG = replace(CONFIG, epochs=20)


def l1_task(config: TrainConfig) -> Task[DCAE]:
    return Task("l1", lambda: DCAE(**config.model), lambda model, x: F.l1_loss(model(x), x), evaluate)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Say whether two models hold the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def untimed(history: list[dict]) -> list[dict]:
    """Return a history without what a clock measured."""
    return [{name: row[name] for name in row.keys() - {"seconds", "images_per_second"}} for row in history]


def equal(a: State, b: State) -> bool:
    """Say whether two runs ended with the same weights and history, bit for bit."""
    return same(a.model, b.model) and untimed(a.history) == untimed(b.history)


def weights(state: State) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


class Double(DCAE):
    def forward(self, x):
        return super().forward(x.double())


def in_float64() -> State:
    """Train for 9 steps. The last batch of an epoch is one image: only rank 0 has a part of it."""
    # Rounding makes tiny gradients where there are none; with SOAP's own eps of 1e-8 they would become steps, and grow.
    config = TrainConfig(epochs=3, batch_size=30, optimizer_args=dict(eps=1e-6))
    task = l1_task(config)._replace(build=lambda: Double(groups=1).double())
    with processes("cpu"):
        pass
    time.sleep(RANK)  # rank 0 begins, and must not take the address that rank 1 had in the group before
    with processes("cpu") as (parallel, device):
        return fit(task, config, Splits(noise(61, "train"), noise(50, "test")), (), parallel, device)


def fail(why="the disk is full", *_):
    raise OSError(why)


def saves(folder: Path) -> State:
    """Train for 160 steps with a checkpoint after each, where no process but the first can write."""
    if RANK:
        os.replace = os.mkdir = fail
    return train(LONG, folder / "out", PICTURES, keep_pictures(folder / "out", PICTURES.test), save_every=-1)


def errors(folder: Path) -> int:
    """Meet one error after another. A process that meets one alone cuts off the others, so that comes last."""
    from dcae_lib.__main__ import guarded
    from dcae_lib.__main__ import main as dcae

    def broken_images_on_rank1():
        if RANK == 1:
            raise DataError("20 images in a row cannot be read")
        return train(CONFIG, splits=PICTURES)

    for arguments in (["--lr", "-1"], ["--dataset", "nowhere"], ["--model", '{"channels": [3]}']):
        dcae(["train", "--out", str(folder / "out"), "--device", "cpu", *arguments])
    nan = replace(CONFIG, lr=1e30, optimizer="SGD", optimizer_args={}, clip=None)
    guarded(lambda: train(nan, splits=PICTURES))
    guarded(lambda: train(CONFIG, splits=PICTURES, after_epoch=lambda run: fail("no picture")))
    os.fsync = lambda _: fail()
    guarded(lambda: train(CONFIG, folder / "out", PICTURES, save_every=-1))
    return guarded(broken_images_on_rank1)


def main(what: str, folder: Path) -> int:
    torch.set_num_threads(1)
    if what == "errors":
        return errors(folder)
    state = in_float64() if what == "float64" else saves(folder)
    bits = hashlib.sha256(weights(state).numpy().tobytes()).hexdigest()
    starts = [session["step"] for session in state.sessions]
    ended = dict(bits=bits, step=state.step, starts=starts, history=untimed(state.history))
    (folder / f"{RANK}.json").write_text(json.dumps(ended))
    torch.save(weights(state), folder / f"{RANK}.pt")
    return 130 if state.stop else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
