"""The file format: every byte is in its place, and anything else is refused with the right error."""

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_lib.codec.bitstream import MAX_PIXELS, CorruptStream, Header, check_size, pack, unpack

MODEL = bytes(range(0xA0, 0xC0))  # the SHA-256 of some weights
FILES = [pack(Header(32, 32, 0, 50), random.Random(0).randbytes(90), MODEL), pack(Header(300, 20, 3, 5), b"abc", MODEL)]


def sealed(body, model=MODEL):
    """Append the checksum that fits."""
    return body + zlib.crc32(model + body).to_bytes(4, "little")


def changed(data, index, xor=1):
    return data[:index] + bytes([data[index] ^ xor]) + data[index + 1 :]


# ---- the bytes


def test_small_square_image_has_eight_bytes_of_overhead():
    assert pack(Header(32, 32, 0, 50), b"\x07\x00\xff", MODEL) == bytes.fromhex("d2 a0 20 32 0700ff 4aac38bc")


@pytest.mark.parametrize(
    "header, head",
    [
        (Header(1, 1, 0, 0), "d2a0 01 00"),
        (Header(255, 255, 0, 100), "d2a0 ff 64"),
        (Header(256, 256, 0, 7), "d2a0 00 0001 0001 00000000 07"),
        (Header(1, 255, 0, 7), "d2a0 00 0100 ff00 00000000 07"),
        (Header(32, 32, 1, 7), "d2a0 00 2000 2000 01000000 07"),  # a batch of one is a batch
        (Header(32, 32, 300, 7), "d2a0 00 2000 2000 2c010000 07"),
        (Header(1, 2**16 - 1, 0, 7), "d2a0 00 0100 ffff 00000000 07"),
        (Header(8192, 8192, 0, 7), "d2a0 00 0020 0020 00000000 07"),
    ],
)
def test_header_fields_have_documented_bytes(header, head):
    data = sealed(bytes.fromhex(head) + b"payload")
    assert pack(header, b"payload", MODEL) == data
    assert unpack(data, MODEL) == (header, b"payload")


# ---- refused


@pytest.mark.parametrize("data", FILES, ids=["square", "batch"])
def test_truncated_or_extended_files_are_corrupt(data):
    for n in range(len(data)):
        message = f"at least 8 bytes, this has {n}" if n < 8 else "checksum does not match"
        with pytest.raises(CorruptStream, match=message):
            unpack(data[:n], MODEL)
    for more in (b"\0", data, data[-1:]):
        with pytest.raises(CorruptStream, match="checksum does not match"):
            unpack(data + more, MODEL)


@pytest.mark.parametrize("data", FILES, ids=["square", "batch"])
def test_any_changed_byte_is_noticed(data):
    for index in range(len(data)):
        for xor in range(1, 256):
            kind = ValueError if index == 1 or (index == 0 and xor < 16) else CorruptStream
            with pytest.raises(kind) as refused:
                unpack(changed(data, index, xor), MODEL)
            assert refused.type is kind


def test_messages_say_what_the_bytes_are():
    data = FILES[0]
    for other, message in [
        (b"\x89PNG\r\n\x1a\n", "not a compressed image: it begins with 0x89, not 0xD2"),
        (
            sealed(b"\xd1" + data[1:-4]),
            r"written by version 1 of the codec \(dcae-lib 0.1\), this is version 2: .* it with",
        ),
        (sealed(b"\xd3" + data[1:-4]), "written by version 3 of the codec, this is version 2"),
        (changed(data, 1), "another model, whose hash begins with a1; load its own codec"),
    ]:
        with pytest.raises(ValueError, match=message):
            unpack(other, MODEL)


@pytest.mark.parametrize("index", [1, 17, 31])
def test_checksum_covers_the_whole_model_hash(index):
    with pytest.raises(CorruptStream, match="another model wrote them"):
        unpack(FILES[0], changed(MODEL, index))


@pytest.mark.parametrize(
    "body, message",
    [
        ("d2a0 20 65", "the header holds no quality from 0 to 100"),
        ("d2a0 00 0100 0100 00000000 65", "the header holds no quality"),
        ("d2a0 00 00", "invalid size in the header: images of 0×0 pixels: there is nothing to compress"),  # cut
        ("d2a0 00 0500 0000 07000000 32", "invalid size in the header: images of 5×0 pixels"),
        ("d2a0 00 0020 0120 00000000 32", "invalid size in the header: 1 × 8192×8193 pixels"),
        ("d2a0 00 ffff ffff ffffffff 32", "at most 67 megapixels"),
    ],
)
def test_invalid_headers_are_corrupt_despite_valid_checksums(body, message):
    with pytest.raises(CorruptStream, match=message):
        unpack(sealed(bytes.fromhex(body)), MODEL)


@settings(max_examples=200)
@given(st.binary(max_size=20))
def test_forged_headers_hold_valid_sizes_or_are_corrupt(rest):
    try:
        header, payload = unpack(sealed(b"\xd2\xa0" + rest.ljust(2, b"\0")), MODEL)
    except CorruptStream:
        return
    check_size(*header[:3])
    assert 0 <= header.quality <= 100 and rest.endswith(payload)


@pytest.mark.parametrize("size", [(8192, 8192, 0), (8192, 8192, 1), (4096, 4096, 4), (32, 32, 2**16)])
def test_size_limit_counts_all_images(size):
    H, W, count = size
    check_size(*size)
    for more in (
        (H + 1, W, count),
        (H, W + 1, count),
        (H, W, max(count, 1) + 1),
        (1, 1, MAX_PIXELS + 1),
        (1, 65536, 0),
    ):
        message = (
            rf"{max(more[2], 1)} × {more[0]}×{more[1]} pixels; a file holds at most 67 megapixels, .*: split the images"
        )
        with pytest.raises(ValueError, match=message) as refused:
            check_size(*more)
        assert refused.type is ValueError  # not CorruptStream: these are the caller's own images
