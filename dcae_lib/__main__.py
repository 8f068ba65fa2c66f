"""The command `dcae`: train, train-codec, verify, compress and decompress."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from .codec import command
from .codec.model import RateModel
from .codec.train import PRESET, SCORED, estimate, train_codec
from .config import PRESETS, TrainConfig
from .data import DataError
from .device import best_device
from .files import resource
from .loop import State, evaluate
from .model import DCAE
from .runs.progress import NonFiniteLoss
from .runs.record import refuse_another
from .runs.verify import compare, read_record, table
from .scale.parallel import StoppedElsewhere, processes, rank0_first
from .scale.stream import WORKERS
from .training import images_of, keep_pictures, train

TOLERANCE = 1e-4  # in each metric's own unit: another processor rounds differently
CODEC_TOLERANCE = 2e-3  # a latent near a half may be rounded to the other side


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 if all was done, 1 if something could not be done, 2 for bad usage, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="dcae", description="A deep convolutional autoencoder, and its codec.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_train(commands)
    add_train_codec(commands)
    add_verify(commands)
    command.add_commands(commands)
    options = parser.parse_args(arguments)
    return options.run(options)


def add_train(commands) -> None:
    description = "Train a DCAE. The same command after a kill or Ctrl-C resumes."
    parser = commands.add_parser("train", help="train a DCAE", description=description)
    parser.set_defaults(run=run_train)
    add_common(parser)
    parser.add_argument("--preset", default="tuned", choices=PRESETS, help="starting point (default: %(default)s)")
    parser.add_argument("--dataset", help='"sample", "cifar10" or a folder of images, with --crop of any size')
    parser.add_argument("--optimizer", help="SOAP or a name in torch.optim")
    parser.add_argument("--precision", help="float32 or bfloat16")
    for name, kind in (("epochs", int), ("batch-size", int), ("lr", float), ("warmup", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind)
    crop = "train on random squares of these sizes, in pixels; images or tar shards are read while training"
    parser.add_argument("--crop", type=int, nargs="+", metavar="SIDE", help=crop)
    workers = f"with --crop, processes that read images (default: {WORKERS}; the weights do not depend on it)"
    parser.add_argument("--workers", type=int, help=workers)
    parser.add_argument("--model", type=json_value, help="""arguments of DCAE(...) as JSON: '{"shortcut": "direct"}'""")


def run_train(options: argparse.Namespace) -> int:
    def do() -> State:
        with processes(options.device) as (parallel, _):
            config = TrainConfig.preset(options.preset, **settings(options))
            parallel.on_rank0(lambda: refuse_another(config, options.out))
            splits = rank0_first(parallel, lambda: images_of(config, options.workers))
            return train(config, options.out, splits, keep_pictures(options.out, splits.test))

    def summary(state: State) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in state.metrics.items())

    return status(do, options.out, summary)


def add_train_codec(commands) -> None:
    description = "Train the codec's model, from the recorded DCAE on. The same command after a kill or Ctrl-C resumes."
    parser = commands.add_parser("train-codec", help="train the model of the codec", description=description)
    parser.set_defaults(run=run_train_codec)
    add_common(parser)
    parser.add_argument("--dataset", default="cifar10", help='"sample", "cifar10" or a folder of images of one size')
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int)


def run_train_codec(options: argparse.Namespace) -> int:
    def do() -> State:
        with processes(options.device) as (parallel, _):
            config = TrainConfig(**PRESET | settings(options))
            parallel.on_rank0(lambda: refuse_another(config, options.out))
            return train_codec(config, options.out)

    def summary(state: State) -> str:
        last = state.metrics
        return ", ".join(f"{last[f'psnr_{q}']:.2f} dB at {last[f'bpp_{q}']:.3f} bpp" for q in SCORED)

    return status(do, options.out, summary)


def add_common(parser: argparse.ArgumentParser) -> None:
    out = "folder for the model, history.json and, until the end, checkpoints"
    parser.add_argument("--out", required=True, help=out)
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best available")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of TrainConfig that the command names."""
    names = [field.name for field in fields(TrainConfig)]
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error


def status(do: Callable[[], State], out: str, summary: Callable[[State], str]) -> int:
    """Run a training and report it on rank 0; return the exit status."""
    rank0 = os.environ.get("RANK", "0") == "0"
    try:
        state = do()
    except StoppedElsewhere:
        return 1
    except (DataError, NonFiniteLoss, OSError, TypeError, ValueError) as error:
        met_by_all = isinstance(error, (NonFiniteLoss, TypeError, ValueError))
        if rank0 or not (met_by_all and dist.is_initialized()):
            print(error, file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        print(f"a process that reads images ended ({error}); if memory is short, use fewer --workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the second one, or before or after the training
        print("interrupted; the same command resumes from the last checkpoint, if there is one", file=sys.stderr)
        return 130
    if rank0 and state.stop:
        print(f"interrupted in epoch {len(state.history) + 1}; the same command resumes there", file=sys.stderr)
    elif rank0:
        print(f"{out}: {summary(state)}")
    return 130 if state.stop else 0


def add_verify(commands) -> None:
    text = "Evaluate trained weights on the test images of their record, and compare the metrics."
    parser = commands.add_parser("verify", help="compare trained weights with their record", description=text)
    parser.set_defaults(run=run_verify)
    parser.add_argument("folder", nargs="?", type=Path, default=resource("recorded"), help="default: the recorded run")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best available")


def run_verify(options: argparse.Namespace) -> int:
    try:
        print(table(verify(options.folder, options.device)))
    except (DataError, OSError, SafetensorError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def verify(folder: Path, device: str | None = None) -> dict[str, tuple[float, float]]:
    """Evaluate the weights of a DCAE or a codec in a folder on their test images: {metric: (recorded, measured)}.

    Raises ValueError if the weights were saved with another history, if the test images are not those of the record,
    or if a metric differs by more than 1e-4, of a codec 2e-3.
    """
    of_codec = b'"context"' in (folder / "config.json").read_bytes()
    model = (RateModel if of_codec else DCAE).from_pretrained(folder).to(best_device(device))
    record = read_record(folder)
    test = images_of(TrainConfig(record["config"]["dataset"], tuple(record["config"].get("crop", ())))).test
    if of_codec:
        return compare(record, test, model, estimate, CODEC_TOLERANCE)
    return compare(record, test, model, evaluate, TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
