"""Measure the PSNR of photographs: in one piece, in tiles and in overlapping tiles, by the groups of the norms.

The shipped weights, and those of three runs of ten epochs that differ only in the groups. A clone has no weights of
these; `python bench/runs.py ablation-tuned ablation-groups-8 ablation-groups-32` trains them.
"""

import json

import torch
from harness import PHOTOS, here, parser, photo, save
from runs import folder
from torch import Tensor

from dcae_lib import DCAE, to_model
from dcae_lib.metrics import psnr
from dcae_lib.tiles import TILE, reconstruct

MODELS = ("full", "ablation-tuned", "ablation-groups-8", "ablation-groups-32")
TILINGS = {f"{tile}/{overlap}": (tile, overlap) for tile, overlap in ((32, 4), (32, 8), (32, 16), (64, 8), (128, 16))}


def whole_tiles(name: str) -> Tensor:
    """Return a photograph, cropped to whole tiles: [3, H, W] in [-1, 1]."""
    x = to_model(photo(name))
    H, W = (side // TILE * TILE for side in x.shape[1:])
    return x[:, :H, :W]


@torch.no_grad()
def measure(model: DCAE, x: Tensor) -> dict[str, float]:
    """Return the PSNR of a photograph by the way in which it goes through the network."""
    ways = {"whole": model(x[None])[0], "tiles": reconstruct(model, x, overlap=0)}
    ways |= {name: reconstruct(model, x, *tiling) for name, tiling in TILINGS.items()}
    return {name: psnr(y[None], x[None]).item() for name, y in ways.items()}


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "photos")
    command.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; the others keep what was measured")
    options = command.parse_args(arguments)
    rows = json.loads(options.out.read_text())["rows"] if options.models else []
    rows = [row for row in rows if row["model"] not in options.models]
    for name in options.models or MODELS:
        model = DCAE.from_pretrained(folder(name))
        for picture in PHOTOS:
            scores = measure(model, whole_tiles(picture))
            rows.append(dict(model=name, groups=model.config["groups"], photo=picture, psnr=scores))
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: MODELS.index(row["model"]))
    save(options.out, dict(tile=TILE, rows=rows) | here())


if __name__ == "__main__":
    main()
