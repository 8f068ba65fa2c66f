"""Small trainings for tests to kill, interrupt and break: `several.py WHAT FOLDER`, alone or under torchrun.

At the end each process writes <rank>.json, with the hash of its weights, into the folder.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from dcae_lib import DCAE, ImageSet, Splits, TrainConfig, to_model, train
from dcae_lib.data import DataError
from dcae_lib.loop import State, Task, fit
from dcae_lib.runs import checkpoint
from dcae_lib.scale.parallel import processes
from dcae_lib.training import keep_pictures

RANK = int(os.environ.get("RANK", "0"))


def noise(count: int, name: str, seed: int) -> ImageSet:
    pixels = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(pixels, None, name, f"the hash of {name}")


PICTURES = Splits(noise(30, "noise train", 0), noise(4, "noise test", 1))
# Everything that has a state: dropout draws numbers, SOAP remembers, and the last of an epoch's 8 batches is short.
CONFIG = TrainConfig(
    epochs=2,
    batch_size=4,
    device="cpu",
    clip=0.5,
    optimizer_args=dict(precondition_frequency=3),
    model=dict(channels=(4, 8), latent_channels=4, groups=4, dropout=0.1, stage_dropout=0.2),
)


def same(a: dict, b: dict) -> bool:
    """Say whether two dicts of tensors hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses_of(history: list[dict]) -> list[dict]:
    """Return a history without what a clock measured."""
    return [{name: row[name] for name in row.keys() - {"seconds", "images_per_second"}} for row in history]


def equal(a: State, b: State) -> bool:
    """Say whether two runs ended with the same weights and history, bit for bit."""
    return same(a.model.state_dict(), b.model.state_dict()) and losses_of(a.history) == losses_of(b.history)


def leave(folder: Path, state: State) -> None:
    weights = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    bits = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    ended = dict(bits=bits, history=losses_of(state.history), starts=[session["step"] for session in state.sessions])
    (folder / f"{RANK}.json").write_text(json.dumps(ended))
    if RANK == 0:
        torch.save(weights, folder / "weights.pt")


def in_float64() -> State:
    """Train for 9 steps; the last batch of an epoch is one image, so that all processes but the first have none of it."""

    def loss(model, x):
        return F.l1_loss(model(x.double()), x.double())

    @torch.no_grad()
    def score(model, images):
        x = to_model(images.images).double()
        return dict(l1=(model(x) - x).abs().mean().item())

    # Rounding makes tiny gradients where there are none; with SOAP's own eps of 1e-8 they would become steps, and grow.
    config = TrainConfig(epochs=3, batch_size=30, device="cpu", optimizer_args=dict(eps=1e-6))
    task = Task("l1", lambda: DCAE(groups=1).double(), loss, score)
    with processes("cpu") as (parallel, device):
        return fit(task, config, Splits(noise(61, "train", 0), noise(50, "test", 1)), (), parallel, device)


def fail(*arguments):
    raise OSError(28, "No space left on device")


def broken(what: str, folder: Path) -> State:
    """Train and meet an error."""
    if what == "NaN":
        return train(TrainConfig(lr=1e30, optimizer="SGD", device="cpu"), None, PICTURES)
    if what == "full disk":
        checkpoint.write_whole = fail
    if what == "images on rank 1" and RANK == 1:
        raise DataError("20 images in a row cannot be read")
    return train(CONFIG, folder / "out", PICTURES, fail if what == "callback" else None, save_every=-1)


def main(what: str, folder: Path, *more: str) -> int:
    from dcae_lib.__main__ import main as dcae
    from dcae_lib.__main__ import status

    torch.set_num_threads(1)
    state = None

    def do() -> State:
        nonlocal state
        if what == "saves":  # a checkpoint after each of 160 steps
            long = TrainConfig(**vars(CONFIG) | dict(epochs=20))
            state = train(long, folder / "out", PICTURES, save_every=-1)
        elif what == "apart":  # each process has a folder of its own to write to
            pictures = keep_pictures(folder / f"out-{RANK}", PICTURES.test)
            state = train(CONFIG, folder / f"out-{RANK}", PICTURES, pictures, save_every=-1)
        elif what == "float64":
            state = in_float64()
        else:
            state = broken(what, folder)
        return state

    if what == "dcae":
        return dcae([*more])
    code = status(do, "out", lambda state: "done")
    if state:
        leave(folder, state)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
