"""Write the streams that every later codec must decode: `python tests/codec/golden/make.py`, after new weights.

<name>-<quality>.dcae are streams; latents.safetensors holds the latents that each decodes to, [N, C, h, w], and the
identity of the weights. Latents rather than pixels: they are the same on every machine.
"""

from pathlib import Path

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
    """Decode the latents that `codec.decompress` turns into pixels."""
    header, payload = unpack(data, codec.identity)
    h, w = (-(-side // codec.factor) for side in header[:2])
    return decode([payload], [max(header.images, 1)], h, w, codec.context(header.quality)).short()


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
