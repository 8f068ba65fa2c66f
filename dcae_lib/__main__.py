"""The command `dcae`: train, train-codec, verify, compress and decompress."""

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from .codec import command
from .codec.model import RateModel
from .codec.photos import SIDES
from .codec.train import PRESET, codec_images, estimate, train_codec
from .config import PRESETS, TrainConfig
from .data import DataError
from .device import best_device
from .files import resource
from .loop import State, evaluate
from .model import DCAE
from .runs.record import compare, read_record, refuse_another, table
from .scale.parallel import StoppedElsewhere, processes, rank0_first
from .scale.stream import WORKERS
from .training import images_of, keep_pictures, train

OPTIONS: dict[str, tuple[type, str]] = {
    "dataset": (str, '"sample", "cifar10" or a folder of images'),
    "optimizer": (str, "SOAP or a name in torch.optim"),
    "precision": (str, "float32 or bfloat16"),
    "device": (str, "cuda, mps or cpu; default: the best available"),
    "epochs": (int, "passes over the images"),
    "batch-size": (int, "images per step, of all processes together"),
    "lr": (float, "learning rate"),
    "warmup": (float, "fraction of all steps in which the learning rate rises"),
    "seed": (int, "seed of the weights, the order of the images and dropout"),
}
RANK0 = (os.environ.get("RANK") or "0") == "0"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 if all was done, 1 if something could not be done, 2 for bad usage, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="dcae", description="A deep convolutional autoencoder, and its codec.")
    commands = parser.add_subparsers(dest="command", required=True)
    resumes = "The same command after a kill or Ctrl-C resumes."
    trains = add_command(commands, "train", f"Train a DCAE. {resumes}", *OPTIONS)
    trains.add_argument("--preset", default="tuned", choices=PRESETS, help="starting point (default: %(default)s)")
    crop = "train on random squares of these sides, in pixels, from a folder or tar shards read while training"
    trains.add_argument("--crop", type=int, nargs="+", metavar="SIDE", help=crop)
    workers = "with --crop, processes that read; the weights do not depend on it (default: %(default)s)"
    trains.add_argument("--workers", type=int, help=workers)
    trains.add_argument("--model", type=JSON, help="""arguments of DCAE(...) in JSON: '{"shortcut": "direct"}'""")
    text = f"Train the model of the codec, from a recorded DCAE on. {resumes}"
    trains = add_command(commands, "train-codec", text, "dataset", "epochs", "seed", "device")
    trains.add_argument("--photos", help="folder of photographs to train on instead (data/get_photos.py)")
    text = "Evaluate trained weights on the test images of their record, and compare the metrics."
    verifies = commands.add_parser("verify", help=text, description=text)
    verifies.set_defaults(run=lambda options: print(table(verify(Path(options.folder).expanduser(), options.device))))
    verifies.add_argument("folder", nargs="?", type=Path, default=resource("recorded"), help="default: recorded run")
    verifies.add_argument("--device", help=OPTIONS["device"][1])
    command.add_commands(commands)
    options = parser.parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: escapes what a console cannot show
    return guarded(lambda: options.run(options) or 0)


def add_command(commands, name: str, text: str, *names: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text.split(".")[0], description=text)
    parser.set_defaults(run=run_training, workers=WORKERS)
    parser.add_argument("--out", required=True, help="folder for the model, history.json and, meanwhile, checkpoints")
    for option in names:
        parser.add_argument(f"--{option}", type=OPTIONS[option][0], help=OPTIONS[option][1])
    return parser


def JSON(text: str) -> Any:  # argparse names it: "invalid JSON value"
    return json.loads(text)


def run_training(options: argparse.Namespace) -> int:
    """Train a DCAE or the codec, say on rank 0 how it ended, and return the exit status."""
    settings = {f.name: value for f in fields(TrainConfig) if (value := getattr(options, f.name, None)) is not None}
    with processes(options.device) as (parallel, _):
        of_codec, out = options.command == "train-codec", options.out
        if of_codec:
            photos = dict(dataset=options.photos, crop=SIDES) if options.photos else {}
            config = TrainConfig(**dict(dataset="cifar10") | PRESET | settings | photos)
        else:
            config = TrainConfig.preset(options.preset, **settings)
        parallel.on_rank0(lambda: refuse_another(config, out))
        load = codec_images if of_codec else lambda config: images_of(config, options.workers)
        splits = rank0_first(parallel, lambda: load(config))
        state: State[Any]
        if of_codec:
            state = train_codec(config, out, splits)
        else:
            state = train(config, out, splits, keep_pictures(out, splits.test))
    if RANK0 and state.stop:
        print(f"interrupted in epoch {len(state.history) + 1}; the same command resumes there", file=sys.stderr)
    elif RANK0:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in state.metrics.items())
        print(f"{out}: {scores}")
    return 130 if state.stop else 0


def guarded(run: Callable[[], int]) -> int:
    """Run a command and return its exit status; say what went wrong without a traceback, and once under torchrun."""
    try:
        return run()
    except StoppedElsewhere:
        return 1
    except (DataError, FloatingPointError, OSError, SafetensorError, TypeError, ValueError) as error:
        met_by_all = isinstance(error, (FloatingPointError, TypeError, ValueError))
        if RANK0 or not (met_by_all and dist.is_initialized()):
            print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # in a training the second one, or before or after it
        print("interrupted; every file is complete, and a training resumes from its last checkpoint", file=sys.stderr)
        return 130


def verify(folder: Path, device: str | None = None) -> dict[str, tuple[float, float]]:
    """Evaluate the weights of a DCAE or a codec in a folder on their test images: {metric: (recorded, measured)}.

    Raises ValueError if the weights were saved with another history, if the test images are not those of the record,
    or if a metric differs by more than 1e-4, of a codec 5e-3: its weights are rounded to 16 bits.
    """
    of_codec = b'"hidden"' in (folder / "config.json").read_bytes()
    model = (RateModel if of_codec else DCAE).from_pretrained(folder).to(best_device(device))
    record = read_record(folder)
    config = TrainConfig(record["config"]["dataset"], record["config"].get("crop", ()))
    test = (codec_images if of_codec else images_of)(config).test
    return compare(record, test, model, estimate if of_codec else evaluate, 5e-3 if of_codec else 1e-4)


if __name__ == "__main__":
    sys.exit(main())
