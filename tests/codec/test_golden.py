"""Streams of the shipped weights, written once, are read as they were then: no change of the code may alter the format."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dcae_lib import Codec, entropy
from dcae_lib.codec.bitstream import unpack

GOLDEN = Path(__file__).parent / "golden"
make = runpy.run_path(str(GOLDEN / "make.py"))
NAMES = [f"{name}-{quality}" for name in ("frog", "cat", "batch") for quality in make["QUALITIES"]]


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def recorded():
    with safe_open(GOLDEN / "latents.safetensors", "pt") as file:
        return file.metadata()["identity"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_the_streams_are_those_of_the_shipped_weights(codec, recorded):
    assert recorded[0] == codec.identity.hex(), (
        "tests/golden holds streams of other weights than those in results/codec. If the weights were replaced on purpose, "
        "run python tests/golden/make.py again; if not, the identity of a model changed, and no old file can be read any more"
    )
    assert set(recorded[1]) == set(NAMES) == {path.stem for path in GOLDEN.glob("*.dcae")}


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_read_as_the_latents_that_were_written_and_these_are_written_as_the_same_bytes(name, codec, recorded):
    data = (GOLDEN / f"{name}.dcae").read_bytes()
    y = make["latents"](codec, data)
    assert y.dtype == torch.int16 and torch.equal(y, recorded[1][name])
    header, payload = unpack(data, codec.identity)
    assert header.quality == int(name.split("-")[1])
    inside = y.new_zeros(len(y), *y.shape[2:]).bool()
    images = make["pictures"]()[name.split("-")[0]]
    H, W = images.shape[-2:]
    rows, columns = -(-H // 32), -(-W // 32)
    for k, part in enumerate(inside):                       # written out here: the mask, too, is part of the format
        row, column = divmod(k % (rows * columns), columns)
        part[: -(-min(32, H - 32 * row) // 4), : -(-min(32, W - 32 * column) // 4)] = True
    assert entropy.encode(y.float(), inside, [len(y)], codec.context(header.quality)) == [payload]
    assert codec.decompress(data).shape == images.shape
