"""Hold trained weights against their record: `dcae verify [FOLDER]`."""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..data import DataError
from ..device import best_device
from ..config import TrainConfig
from ..model import DCAE
from ..codec.model import SCORED, RateModel, estimate
from ..files import resource
from ..training import evaluate, images_of

TOLERANCE = 1e-4            # in each metric's own unit: what another processor may round otherwise
CODEC_TOLERANCE = 2e-3      # a latent near a half may be rounded to the other side


def verify(folder: Path, device: str | None = None) -> dict[str, tuple[float, float]]:
    """Evaluate the weights in a folder on the test images that its history names: {metric: (recorded, found)}.

    The weights are those of a DCAE or of a codec. Raises ValueError if they were saved with another history, if the data
    are others, or if a metric differs by more than 1e-4, of a codec 2e-3.
    """
    history = (folder / "history.json").read_bytes()
    config = folder / "config.json"
    of_codec = config.is_file() and b'"context"' in config.read_bytes()
    model = (RateModel if of_codec else DCAE).from_pretrained(folder).to(best_device(device))
    with safe_open(folder / "model.safetensors", "pt") as file:
        written_with = (file.metadata() or {}).get("history_sha256")
    if written_with != hashlib.sha256(history).hexdigest():
        raise ValueError(f"the weights in {folder} were not saved with the history.json that lies beside them")
    try:
        record = json.loads(history)
        trained = TrainConfig(record["config"]["dataset"], tuple(record["config"].get("crop", ())))
        data, recorded = dict(record["data"]), record["history"][-1]
        names = [f"{name}_{q}" for q in SCORED for name in ("bpp", "psnr")] if of_codec else ("l1", "l1_01", "psnr", "ssim")
        recorded = {name: float(recorded[name]) for name in names}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'history.json'} is not the record of a training: {error!r}") from error
    test = images_of(trained).test
    if data.get(test.name) != test.sha256:
        raise ValueError(f"{test.name} has SHA-256 {test.sha256}, the record says {data.get(test.name)}")
    found = estimate(model, test) if isinstance(model, RateModel) else evaluate(model, test)
    tolerance = CODEC_TOLERANCE if of_codec else TOLERANCE
    scores = {name: (recorded[name], value) for name, value in found.items()}
    if any(not abs(then - now) <= tolerance for then, now in scores.values()):
        raise ValueError(f"the weights in {folder} do not give what is recorded:\n{table(scores)}")
    return scores


def table(scores: dict[str, tuple[float, float]]) -> str:
    """What was recorded and what was found, a line each."""
    width = max([6, *map(len, scores)])
    return "\n".join(f"{name:{width}} recorded {recorded:.6f}, found {value:.6f}" for name, (recorded, value) in scores.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dcae verify", description=__doc__.split(":")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=resource("recorded"), help="default: the recorded run")
    parser.add_argument("--device", help="cuda, mps or cpu; the best there is if not named")
    options = parser.parse_args(arguments)
    try:
        print(table(verify(options.folder, options.device)))
    except (DataError, OSError, SafetensorError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
