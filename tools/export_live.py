"""Write the weights and statistics that the living explorers load: `python tools/export_live.py --help`."""

import argparse
import json
import shutil
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.transforms.functional import center_crop

from dcae_lib import DCAE, Codec, load_images, plots, to_model
from dcae_lib.codec.compare import constants
from dcae_lib.data import CLASSES, as_png, open_picture
from dcae_lib.explore import LEVELS, latents
from dcae_lib.files import PACKAGE, resource

# ---- the network and the explorers of its latents: dcae.safetensors, pictures.safetensors, statistics.safetensors

COLOURS = ("RdBu_r", "magma")  # of maps of latents, and of changes


def halved() -> DCAE:
    """Return the recorded network with the weights that a file in half precision holds."""
    model = DCAE.from_pretrained()
    model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return model


def export_network(out: Path) -> None:
    """Write the recorded network, in half precision, with its config and the hash of the file that it comes from."""
    model, file = DCAE.from_pretrained(), resource("recorded") / "model.safetensors"
    metadata = {"config": json.dumps(model.config), "sha256": sha256(file.read_bytes()).hexdigest()}
    weights = {name: value.half() for name, value in model.state_dict().items()}
    (out / "dcae.safetensors").write_bytes(save(weights, metadata))


def export_explorers(out: Path) -> None:
    """Write a dozen pictures, and what dcae_lib.explore measures on all 500 that it uses.

    The first file holds what the first explorer of a page needs, so that it comes soon.
    """
    test = load_images("sample").test
    z = latents.encode_all(halved(), to_model(test.images))
    classes = ["plane", "car", *CLASSES[2:]]
    metadata = {"classes": json.dumps(classes), "names": json.dumps([classes[k] for k in test.labels[:12]])}
    colours = [plots.colorize(torch.arange(256)[None] / 255, name)[:, 0].T for name in COLOURS]
    first = {
        "images": test.images[:12].contiguous(),
        "mean": z.mean((0, 2, 3)),
        "bounds": z.abs().amax((0, 2, 3)),
        "colours": torch.stack(colours),
    }
    (out / "pictures.safetensors").write_bytes(save(first, metadata))
    (out / "statistics.safetensors").write_bytes(save(statistics(z, test.labels)))
    shutil.copy(resource("photos") / "cat.webp", out)


def statistics(z: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the same as `channels`, `directions`, `quantisation` and `damage` compute when they are called."""
    stamps, costs = latents.effects(halved(), z[:64])
    stamps = center_crop(stamps / stamps.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12), [16, 16])
    mean_latent, axes, deviations = latents.principal_components(z, 8)
    low, high = z.amin((0, 2, 3)), z.amax((0, 2, 3))
    found = {
        "std": z.std((0, 2, 3)),
        "low": low,
        "high": high,
        "stamps": stamps.half(),
        "costs": costs,
        "mean_latent": mean_latent,
        "moves": (axes * deviations[:, None, None, None]).half(),
        "class_means": torch.stack([z[labels == k].mean(0) for k in range(10)]).half(),
        "noise": torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)),
    }
    for n in LEVELS:
        found[f"bits.{n}"] = latents.bits_of_levels(latents.levels_of(z, n, low, high)[1], n).half()
    return {name: value.contiguous() for name, value in found.items()}


# ---- the codec: thumbnails.safetensors, photographs.safetensors, tables.safetensors, codec.json and pictures to try

SIDE = 384  # pixels along the longer side of photographs, the largest that the page compresses


def export_codec(out: Path) -> None:
    """Write the codec's networks as they are stored, its tables, and pictures to compress, without loss."""
    codec, record = Codec.from_pretrained(), json.loads((resource("recorded") / "codec.json").read_text())
    for name in ("thumbnails", "photographs"):
        config = json.dumps(getattr(codec, name).config)
        (out / f"{name}.safetensors").write_bytes(
            save(load_file(resource(name) / "model.safetensors"), {"config": config})
        )
    shutil.copy(PACKAGE / "codec" / "tables.safetensors", out)
    pictures, test = [], load_images("sample").test
    for k, image in enumerate(test.images[:12]):
        pictures.append(f"{CLASSES[test.labels[k]]}-{k}.png")
        (out / pictures[-1]).write_bytes(as_png(image, optimize=True))
    for path in sorted(resource("photos").glob("*.webp")):
        photo = open_picture(path)
        photo.thumbnail((SIDE, SIDE))
        pictures.append(f"{path.stem}-{SIDE}.webp")
        photo.save(out / pictures[-1], lossless=True, method=6)
    about = dict(identity=codec.identity.hex(), constants=constants(record), pictures=pictures)
    (out / "codec.json").write_text(json.dumps(about) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    export_network(out)
    export_explorers(out)
    export_codec(out)


if __name__ == "__main__":
    main()
