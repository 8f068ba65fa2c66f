"""Try an installed package, far from a clone, with what its wheel holds: weights, images and the codec."""

from pathlib import Path

import dcae_lib
from dcae_lib import DCAE, Codec, evaluate, load_images
from dcae_lib.course import measured, recorded_runs

measured("sizes")
if not recorded_runs():
    raise SystemExit("the package lacks the recorded runs")

test = load_images("sample").test
scores = evaluate(DCAE.from_pretrained(), test)
print({name: round(value, 4) for name, value in scores.items()})
if scores["psnr"] < 37:
    raise SystemExit("the weights do not reconstruct the sample")

codec = Codec.from_pretrained()
data = codec.compress(test.images[0], quality=40)
print(f"{len(data)} bytes; decompressed: {tuple(codec.decompress(data).shape)}")
if not (Path(dcae_lib.__file__).parent / "py.typed").exists():
    raise SystemExit("the package lacks its mark for type checkers")
