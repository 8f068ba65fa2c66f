"""Streams written once with the shipped weights decode as they did then: the format never changes."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dcae_lib.codec.bitstream import unpack
from dcae_lib.codec.coder import encode

GOLDEN = Path(__file__).parent / "golden"
make = runpy.run_path(str(GOLDEN / "make.py"))
NAMES = [f"{name}-{quality}" for name in ("frog", "cat", "batch") for quality in make["QUALITIES"]]


@pytest.fixture(scope="module")
def recorded():
    with safe_open(GOLDEN / "latents.safetensors", "pt") as file:
        return file.metadata()["identity"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_golden_streams_belong_to_the_shipped_weights(codec, recorded):
    changed = "run python tests/codec/golden/make.py if results/codec has new weights; if not, old files cannot be read"
    assert recorded[0] == codec.identity.hex(), changed
    assert set(recorded[1]) == set(NAMES) == {path.stem for path in GOLDEN.glob("*.dcae")}


@pytest.mark.parametrize("name", NAMES)
def test_golden_streams_decode_and_encode_to_the_same_bytes(name, codec, recorded):
    data, x = (GOLDEN / f"{name}.dcae").read_bytes(), make["pictures"]()[name.split("-")[0]]
    y, (header, payload) = make["latents"](codec, data), unpack(data, codec.identity)
    assert torch.equal(y, recorded[1][name]) and header.quality == int(name.split("-")[1])
    sizes = [(-(-header.height // f), -(-header.width // f)) for f in (16, 4)]  # written out: part of the format
    levels = [part.unflatten(2, size).float() for part, size in zip(y.split([h * w for h, w in sizes], 2), sizes)]
    assert encode(levels, [len(y)], codec.contexts(header.height, header.width, header.quality)) == [payload]
    assert codec.decompress(data).shape == x.shape
