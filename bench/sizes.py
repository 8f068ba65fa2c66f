"""PSNR of the same pixels, cut into pieces of one side after another; what is to blame; and training that mends it.

`python bench/sizes.py` trains networks on crops of four photographs that come with scikit-image and scikit-learn, and
evaluates these and the runs of bench/photos.py on the photographs of the course, which none has seen. An hour.
"""

import argparse
import hashlib
import io
import json
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from runs import folder
from torch import Tensor, nn

from dcae_lib import DCAE, TrainConfig, to_model, train
from dcae_lib.data import read_picture
from dcae_lib.explore.latents import frozen_norms
from dcae_lib.runs.record import hardware
from dcae_lib.files import resource
from dcae_lib.scale.stream import stream_images
from dcae_lib.tiles import reconstruct

OUT = Path(__file__).resolve().parent.parent / "results" / "bench" / "sizes.json"
SIDES = (32, 64, 128, 256, 512)
REGIONS = {"astronaut": (512, 512), "cat": (256, 256), "coffee": (256, 512)}     # whole pieces of every side that fits
RECORDED = {"the course's weights": "full", "CIFAR-10, 8 groups": "ablation-groups-8",
            "CIFAR-10, one channel per group": "ablation-groups-32"}
# (sides, how many times 16 crops make a batch). The middle one sees as many pixels in as many steps as the last.
CROPS = {"32": ((32,), 1), "32, seven times as many": ((32,), 7), "32, 64 and 128": ((32, 64, 128), 1)}
GROUPS = {8: "8 groups", 32: "one channel per group"}

# Photographs to train on. (package, file in it): SHA-256 of the file
PHOTOS = {
    ("skimage", "data/rocket.jpg"): "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ("skimage", "data/motorcycle_left.png"): "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ("sklearn", "datasets/images/china.jpg"): "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ("sklearn", "datasets/images/flower.jpg"): "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
}


def gather(place: Path) -> None:
    """Write the photographs to train on into a folder, as overlapping tiles of 256×256."""
    for (package, name), sha256 in PHOTOS.items():
        data = files(package).joinpath(name).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        assert found == sha256, f"{name} of {package} has SHA-256 {found}, not {sha256}"
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for top in range(0, image.height - 255, 32):
            for left in range(0, image.width - 255, 32):
                image.crop((left, top, left + 256, top + 256)).save(place / f"{Path(name).stem}-{top:04d}-{left:04d}.png")


def photo(name: str) -> Tensor:
    """The middle of a photograph of the course, [3, H, W] in [-1, 1]."""
    x = to_model(read_picture(resource("photos") / f"{name}.webp"))
    height, width = REGIONS[name]
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


def decibels(y: Tensor, x: Tensor) -> float:
    """PSNR of all pixels together, so that every way of cutting is measured on the same."""
    return -10 * torch.log10(((y.clamp(-1, 1) - x) / 2).square().mean()).item()


def in_pieces(model: nn.Module, x: Tensor, side: int) -> Tensor:
    """Encode and decode [3, H, W] in squares that know nothing of each other."""
    rows = [torch.cat(list(model(torch.stack(band.split(side, 2)))), 2) for band in x.split(side, 1)]
    return torch.cat(rows, 1)


@torch.no_grad()
def measure(model: DCAE) -> dict:
    """{photo: {side: dB, "whole": dB, "overlapping tiles": dB, "32, the photo's statistics": dB}}.

    The last: pieces of 32, but every norm with the mean and variance that it has for the photo in one piece.
    """
    model.eval()
    found: dict[str, dict[str, float]] = {}
    for name in REGIONS:
        x = photo(name)
        found[name] = {str(side): decibels(in_pieces(model, x, side), x) for side in SIDES if side <= min(x.shape[1:])}
        found[name]["overlapping tiles"] = decibels(reconstruct(model, x), x)
        with frozen_norms(model, x[None]):
            found[name]["whole"] = decibels(model(x[None])[0], x)
            found[name]["32, the photo's statistics"] = decibels(in_pieces(model, x, 32), x)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = dict(epochs=options.epochs, hardware=hardware(torch.device("cpu")), torch=torch.__version__, models={})
    for title, run in RECORDED.items():
        record["models"][title] = dict(psnr=measure(DCAE.from_pretrained(folder(run))))
    with tempfile.TemporaryDirectory() as place:
        gather(Path(place))
        for groups, words in GROUPS.items():
            for sides, (crop, times) in CROPS.items():
                epochs, batch_size = options.epochs * times, 16 * times
                config = TrainConfig.preset(
                    "tuned", dataset=place, crop=crop, epochs=epochs, batch_size=batch_size, model=dict(groups=groups),
                )
                splits = stream_images(place, crop)
                run = train(config, splits=splits)
                title = f"crops of {sides}, {words}"
                record["models"][title] = dict(
                    psnr=measure(run.model), groups=groups, crop=crop, batch_size=batch_size,
                    steps=epochs * -(-len(splits.train) // batch_size),
                    seconds=sum(row["seconds"] for row in run.history),
                )
                print(title, record["models"][title], flush=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
