"""Write the streams that every later codec must read as this one does: `python tests/golden/make.py`, after new weights.

<name>-<quality>.dcae are streams, and latents.safetensors holds what each decodes to, [N, C, 8, 8], with the identity of
the weights that wrote it. Latents, and not pixels: they are the same on every machine.
"""

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from dcae_lib import Codec, load_images
from dcae_lib.codec.bitstream import unpack
from dcae_lib.codec.codec import cut
from dcae_lib.codec.context import decode
from dcae_lib.files import resource

HERE = Path(__file__).resolve().parent
QUALITIES = 0, 37, 100


def pictures() -> dict[str, Tensor]:
    """One square of the size that the model knows, one of another with sides that are no multiples of it, a batch."""
    test = load_images("sample").test.images
    cat = pil_to_tensor(Image.open(resource("photos") / "cat.webp").convert("RGB"))
    return {"frog": test[6], "cat": cat[:, 80:130, 150:220], "batch": test[[13, 238, 409]]}


def latents(codec: Codec, data: bytes) -> Tensor:
    """What `codec.decompress` makes pixels of."""
    header, payload = unpack(data, codec.identity)
    h, w = (-(-side // codec.factor) for side in header[:2])
    inside = cut(torch.ones(max(header.images, 1), 1, h, w), codec.grid, "constant")[:, 0].bool()
    return decode([payload], inside, [len(inside)], codec.context(header.quality)).short()


def main() -> None:
    codec, found = Codec.from_pretrained(), {}
    for name, images in pictures().items():
        for quality in QUALITIES:
            data = codec.compress(images, quality)
            (HERE / f"{name}-{quality}.dcae").write_bytes(data)
            found[f"{name}-{quality}"] = latents(codec, data)
    save_file(found, HERE / "latents.safetensors", {"identity": codec.identity.hex()})


if __name__ == "__main__":
    main()
