"""Measure the PSNR of photographs cut into pieces of one side after another, and train networks that mind it less.

`python bench/sizes.py` trains on crops of four photographs that come with scikit-image and scikit-learn, and evaluates
these networks and the runs of bench/photos.py on the photographs of the course, which none has seen. An hour.
"""

import hashlib
import io
import json
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from harness import WIDTHS, here, join, one_thread, parser, photo, save
from PIL import Image
from runs import folder
from torch import Tensor

from dcae_lib import DCAE, TrainConfig, to_model, train
from dcae_lib.explore.latents import frozen_norms
from dcae_lib.scale.stream import stream_images
from dcae_lib.tiles import cut, reconstruct

SIDES = (32, 64, 128, 256, 512)
REGIONS = {"astronaut": (512, 512), "cat": (256, 256), "coffee": (256, 512)}  # whole pieces of every side that fits
RECORDED = {
    "the course's weights": "full",
    "CIFAR-10, 8 groups": "ablation-groups-8",
    "CIFAR-10, one channel per group": "ablation-groups-32",
}
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


def write_tiles(place: Path) -> None:
    """Write the photographs to train on into a folder, as overlapping tiles of 256×256."""
    for (package, name), sha256 in PHOTOS.items():
        data = files(package).joinpath(name).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        assert found == sha256, f"{name} of {package} has SHA-256 {found}, not {sha256}"
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for top in range(0, image.height - 255, 32):
            for left in range(0, image.width - 255, 32):
                tile = image.crop((left, top, left + 256, top + 256))
                tile.save(place / f"{Path(name).stem}-{top:04d}-{left:04d}.png")


def decibels(y: Tensor, x: Tensor) -> float:
    """Return the PSNR of all pixels together, so that every way of cutting is measured on the same."""
    return -10 * torch.log10(((y.clamp(-1, 1) - x) / 2).square().mean()).item()


def in_pieces(model: DCAE, x: Tensor, side: int) -> Tensor:
    """Encode and decode [3, H, W] in squares that know nothing of each other."""
    return join(model(cut(x[None], side, "replicate")), 1, *x.shape[1:])[0]


@torch.no_grad()
def measure(model: DCAE) -> dict[str, dict[str, float]]:
    """Return {photo: {side: dB, "whole": dB, "overlapping tiles": dB, "32, the photo's statistics": dB}}.

    The last: pieces of 32, but every norm with the mean and variance that it has for the photo in one piece.
    """
    model.eval()
    found: dict[str, dict[str, float]] = {}
    for name, (height, width) in REGIONS.items():
        x = to_model(photo(name))
        top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
        x = x[:, top : top + height, left : left + width]
        scores = {str(side): decibels(in_pieces(model, x, side), x) for side in SIDES if side <= min(height, width)}
        scores["overlapping tiles"] = decibels(reconstruct(model, x), x)
        with frozen_norms(model, x[None]):
            scores["whole"] = decibels(model(x[None])[0], x)
            scores["32, the photo's statistics"] = decibels(in_pieces(model, x, 32), x)
        found[name] = scores
    return found


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "sizes")
    command.add_argument("--epochs", type=int, default=60)
    command.add_argument("--recorded", nargs="+", metavar="NAME", help="measure these recorded runs alone")
    options = command.parse_args(arguments)
    one_thread()
    models = json.loads(options.out.read_text())["models"] if options.recorded else {}
    for title in options.recorded or RECORDED:
        models[title] = dict(psnr=measure(DCAE.from_pretrained(folder(RECORDED[title]))))
    if not options.recorded:
        models |= trained(options.epochs)
    save(options.out, dict(epochs=options.epochs, models=models) | here())


def trained(epochs: int) -> dict[str, dict]:
    """Train networks on crops of photographs and measure them."""
    models = {}
    with tempfile.TemporaryDirectory() as place:
        write_tiles(Path(place))
        for groups, words in GROUPS.items():
            for sides, (crop, times) in CROPS.items():
                settings = dict(crop=crop, batch_size=16 * times)
                more = dict(epochs=epochs * times, dataset=place, model=WIDTHS | dict(groups=groups))
                state = train(TrainConfig.preset("tuned", **settings, **more), splits=stream_images(place, crop))
                taken = sum(row["seconds"] for row in state.history)
                row = dict(psnr=measure(state.model), groups=groups, **settings, steps=state.step, seconds=taken)
                models[f"crops of {sides}, {words}"] = row
                print(sides, row, flush=True)
    return models


if __name__ == "__main__":
    main()
