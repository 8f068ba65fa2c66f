"""What a photograph loses in a network trained on 32×32 images: whole, in tiles, in overlapping tiles, by GroupNorm's groups.

The shipped weights, and those of two recorded runs with more groups, which bench/runs.py trains if they are not there.
"""

import json
from pathlib import Path

import numpy as np
import torch
from runs import folder
from torch import Tensor

from dcae_lib import DCAE, to_model
from dcae_lib.data import read_picture
from dcae_lib.metrics import psnr
from dcae_lib.resources import resource
from dcae_lib.tiles import TILE, reconstruct

OUT = Path(__file__).resolve().parent.parent / "results" / "bench" / "photos.json"
PHOTOS = ("astronaut", "cat", "coffee")
MODELS = ("full", "ablation-groups-8", "document")
TILINGS = {f"{tile}/{overlap}": (tile, overlap) for tile, overlap in ((32, 4), (32, 8), (32, 16), (64, 8), (128, 16))}


def photo(name: str) -> Tensor:
    """[3, H, W] in [-1, 1], cropped to whole tiles."""
    x = to_model(torch.from_numpy(np.array(read_picture(resource("photos") / f"{name}.webp", name))).permute(2, 0, 1))
    H, W = (side // TILE * TILE for side in x.shape[1:])
    return x[:, :H, :W]


@torch.no_grad()
def by_tiles(model: DCAE, x: Tensor) -> Tensor:
    """Each 32×32 tile by itself, put together with hard edges."""
    H, W = x.shape[1:]
    tiles = x.unfold(1, TILE, TILE).unfold(2, TILE, TILE).permute(1, 2, 0, 3, 4).reshape(-1, 3, TILE, TILE)
    y = model(tiles).view(H // TILE, W // TILE, 3, TILE, TILE)
    return y.permute(2, 0, 3, 1, 4).reshape(3, H, W)


@torch.no_grad()
def measure(model: DCAE, x: Tensor) -> dict[str, float]:
    ways = {"whole": model(x[None])[0], "tiles": by_tiles(model, x)}
    ways |= {name: reconstruct(model, x, *tiling) for name, tiling in TILINGS.items()}
    return {name: psnr(y[None], x[None]).item() for name, y in ways.items()}


def main() -> None:
    rows = []
    for name in MODELS:
        model = DCAE.from_pretrained(folder(name))
        for picture in PHOTOS:
            rows.append(dict(model=name, groups=model.config["groups"], photo=picture, psnr=measure(model, photo(picture))))
            print(rows[-1], flush=True)
    OUT.write_text(json.dumps(dict(tile=TILE, torch=torch.__version__, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
