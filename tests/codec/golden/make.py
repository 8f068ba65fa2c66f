"""Write the streams that every later codec must decode: `python tests/codec/golden/make.py`, after new weights.

<name>-<quality>.dcae are streams; latents.safetensors holds the latents that each decodes to, [N, C, sites] level after
level, and the
identity of the weights. Latents rather than pixels: they are the same on every machine.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dcae_lib import Codec, load_images
from dcae_lib.codec.bitstream import unpack
from dcae_lib.codec.coder import decode
from dcae_lib.data import read_picture
from dcae_lib.files import resource

HERE = Path(__file__).resolve().parent
QUALITIES = 0, 37, 100


def pictures() -> dict[str, Tensor]:
    """Return a thumbnail, an image whose sides are not multiples of 4, and a batch."""
    test = load_images("sample").test.images
    cat = read_picture(resource("photos") / "cat.webp")
    return {"frog": test[6], "cat": cat[:, 80:130, 150:220], "batch": test[[13, 238, 409]]}


def latents(codec: Codec, data: bytes) -> Tensor:
    """Decode the latents that `codec.decompress` turns into pixels, level after level: [N, C, sites]."""
    header, payload = unpack(data, codec.identity)
    H, W, images, quality = header
    y = decode([payload], [max(images, 1)], codec.sizes(H, W), codec.contexts(H, W, quality))
    return torch.cat([level.flatten(2) for level in y], 2).short()


def main() -> None:
    codec, arrays = Codec.from_pretrained(), {}
    for name, images in pictures().items():
        for quality in QUALITIES:
            data = codec.compress(images, quality)
            (HERE / f"{name}-{quality}.dcae").write_bytes(data)
            arrays[f"{name}-{quality}"] = latents(codec, data)
    save_file(arrays, HERE / "latents.safetensors", {"identity": codec.identity.hex()})


if __name__ == "__main__":
    main()
