"""The file format: every byte is where the document says, and what is no such file is told apart before it is read."""

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_lib.codec.bitstream import (
    MOST_PIXELS,
    SHORTEST,
    CorruptStream,
    Header,
    UnknownVersion,
    WrongModel,
    check_size,
    pack,
    unpack,
)

MODEL = bytes(range(0xA0, 0xC0))                            # the SHA-256 of some weights
OTHER = bytes([0xA0, *range(31)])                           # of others, which begin with the same byte
patient = settings(deadline=None, max_examples=200)         # a busy core is no failure


def crc32(data):
    """CRC-32 as ISO 3309 has it, bit by bit."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (0xEDB88320 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def sealed(body, model=MODEL):
    """Any bytes with a checksum that fits."""
    return body + crc32(model + body).to_bytes(4, "little")


# ---- the bytes


def test_the_checksum_of_these_tests_is_the_one_that_everybody_means():
    assert crc32(b"123456789") == 0xCBF43926


def test_a_square_image_has_four_bytes_before_its_payload_and_four_after():
    assert pack(Header(32, 32, 0, 50), b"\x07\x00\xff", MODEL) == bytes.fromhex("d1 a0 20 32 0700ff d7b6d08d")
    assert len(pack(Header(32, 32, 0, 100), b"", MODEL)) == 8 == SHORTEST


@pytest.mark.parametrize("header, head", [
    (Header(1, 1, 0, 0), "d1a0 01 00"),
    (Header(255, 255, 0, 100), "d1a0 ff 64"),
    (Header(256, 256, 0, 7), "d1a0 00 8002 8002 00 07"),
    (Header(1, 255, 0, 7), "d1a0 00 01 ff01 00 07"),
    (Header(127, 128, 0, 7), "d1a0 00 7f 8001 00 07"),
    (Header(32, 32, 1, 7), "d1a0 00 20 20 01 07"),          # a batch of one is a batch
    (Header(32, 32, 300, 7), "d1a0 00 20 20 ac02 07"),
    (Header(1, 2**21, 0, 7), "d1a0 00 01 80808001 00 07"),
    (Header(8192, 8192, 0, 7), "d1a0 00 8040 8040 00 07"),
])
def test_each_field_is_where_the_document_says(header, head):
    data = sealed(bytes.fromhex(head) + b"payload")
    assert pack(header, b"payload", MODEL) == data
    assert unpack(data, MODEL) == (header, b"payload")


sides = st.one_of(st.integers(1, 300), st.integers(1, 2**13))


@patient
@given(
    st.builds(Header, sides, sides, st.one_of(st.just(0), st.integers(1, 1000)), st.integers(0, 100)),
    st.binary(max_size=40),
    st.binary(min_size=32, max_size=32),
)
def test_what_was_packed_is_unpacked(header, payload, model):
    try:
        check_size(*header[:3])
    except ValueError:
        with pytest.raises(ValueError, match="megapixels at most"):
            pack(header, payload, model)
        return
    assert unpack(pack(header, payload, model), model) == (header, payload)


# ---- what is refused


def test_all_errors_are_value_errors_and_none_is_another():
    for one in (kinds := (CorruptStream, WrongModel, UnknownVersion)):
        assert issubclass(one, ValueError)
        assert not any(issubclass(one, other) for other in kinds if other is not one)


DATA = [pack(Header(32, 32, 0, 50), random.Random(0).randbytes(90), MODEL), pack(Header(300, 20, 3, 5), b"abc", MODEL)]


@pytest.mark.parametrize("data", DATA, ids=["square", "batch"])
def test_a_file_that_is_cut_anywhere_or_goes_on_is_corrupt(data):
    for n in range(len(data)):
        with pytest.raises(CorruptStream, match=f"8 bytes at least, this has {n}: it was cut" if n < 8 else "checksum does not fit"):
            unpack(data[:n], MODEL)
    for more in (b"\0", data, data[-1:]):
        with pytest.raises(CorruptStream, match="checksum does not fit"):
            unpack(data + more, MODEL)


@pytest.mark.parametrize("data", DATA, ids=["square", "batch"])
def test_no_single_byte_can_change_unnoticed(data):
    for place, old in enumerate(data):
        for new in {*range(256)} - {old}:
            kind = CorruptStream
            if place == 0 and new >> 4 == 0xD:
                kind = UnknownVersion
            elif place == 1:
                kind = WrongModel
            with pytest.raises(kind) as refused:
                unpack(data[:place] + bytes([new]) + data[place + 1 :], MODEL)
            assert refused.type is kind


@patient
@given(st.data())
def test_no_burst_of_up_to_32_bits_can_change_unnoticed(data):
    place = data.draw(st.integers(2, len(DATA[0]) - 4))
    change = data.draw(st.integers(1, 2**32 - 1)).to_bytes(4, "big")
    changed = bytearray(DATA[0])
    for k, bits in enumerate(change):
        changed[place + k] ^= bits
    with pytest.raises(CorruptStream, match="checksum does not fit"):
        unpack(bytes(changed), MODEL)


@patient
@given(st.binary(max_size=60), st.booleans())
def test_random_bytes_are_refused(noise, begun):
    with pytest.raises((CorruptStream, UnknownVersion, WrongModel)):
        unpack((DATA[0][:2] if begun else b"") + noise, MODEL)


def test_the_message_says_what_these_bytes_are_instead():
    with pytest.raises(CorruptStream, match="do not begin as a compressed image does, with 0xD1, but with 0x89"):
        unpack(b"\x89PNG\r\n\x1a\n", MODEL)
    with pytest.raises(UnknownVersion, match="written by version 2 of the codec, this is version 1: update dcae_lib"):
        unpack(sealed(b"\xd2" + DATA[0][1:-4]), MODEL)
    with pytest.raises(WrongModel, match="hash begins with a0, this one's is 11111111…; load the codec that wrote it"):
        unpack(DATA[0], bytes([0x11] * 32))
    with pytest.raises(CorruptStream, match="or another model wrote them"):
        unpack(DATA[0], OTHER)


@pytest.mark.parametrize("place", [1, 17, 31])
def test_the_checksum_covers_the_whole_hash_of_the_model(place):
    other = bytearray(MODEL)
    other[place] ^= 1
    with pytest.raises(CorruptStream, match="another model wrote them"):
        unpack(DATA[0], bytes(other))


@pytest.mark.parametrize("body, message", [
    ("d1a0 20 65", "the header holds no quality from 0 to 100"),
    ("d1a0 20 ff", "the header holds no quality"),
    ("d1a0 00 01 01 00 65", "the header holds no quality"),
    ("d1a0 00 01 01 00", "the header holds no quality"),                            # cut where the quality was to come
    ("d1a0 00 01 01", "a number in the header does not end"),
    ("d1a0 00 01", "a number in the header does not end"),
    ("d1a0 00 81 80", "a number in the header does not end"),
    ("d1a0 00 01 80", "a number in the header does not end"),
    ("d1a0 00 808080808001 01 00 32", "a number in the header does not end"),       # 2³⁵, in six bytes
    ("d1a0 00 01 ffffffffffffffffff01 00 32", "a number in the header does not end"),
    ("d1a0 00 8080808010 01 00 32", "the header says .* megapixels at most"),       # 2³², in five
    ("d1a0 00 01 8080808010 00 32", "the header says .* megapixels at most"),
    ("d1a0 00 01 01 8080808010 32", "the header says .* megapixels at most"),
    ("d1a0 00 ffffffff7f ffffffff7f ffffffff7f 32", "the header says .* megapixels at most"),
    ("d1a0 00 01 81808020 00 32", "the header says 1 × 1×67108865 pixels.* split them"),
    ("d1a0 00 8040 8140 00 32", "the header says 1 × 8192×8193 pixels"),
    ("d1a0 00 8020 8020 05 32", "the header says 5 × 4096×4096 pixels"),
    ("d1a0 00 00 05 00 32", "the header says images of 0×5 pixels: there is nothing to compress"),
    ("d1a0 00 05 00 00 32", "the header says images of 5×0 pixels"),
    ("d1a0 00 00 00 00 32", "the header says images of 0×0 pixels"),
    ("d1a0 00 00 05 07 32", "the header says images of 0×5 pixels"),
])
def test_a_header_of_nonsense_is_corrupt_even_with_a_checksum_that_fits(body, message):
    data = sealed(bytes.fromhex(body))
    start = time.perf_counter()
    with pytest.raises(CorruptStream, match=message):
        unpack(data, MODEL)
    assert time.perf_counter() - start < 1


@patient
@given(st.binary(max_size=20))
def test_any_header_with_a_checksum_that_fits_is_a_size_that_can_be_or_corrupt(rest):
    try:
        header, payload = unpack(sealed(bytes([0xD1, 0xA0]) + rest.ljust(2, b"\0")), MODEL)
    except CorruptStream:
        return
    check_size(*header[:3])
    assert 0 <= header.quality <= 100 and rest.endswith(payload)


# ---- sizes


@pytest.mark.parametrize("size", [(8192, 8192, 0), (8192, 8192, 1), (4096, 4096, 4), (32, 32, 2**16), (1, 1, 0)])
def test_a_file_may_hold_as_many_pixels_as_it_says(size):
    check_size(*size)


@pytest.mark.parametrize("size", [(8192, 8193, 0), (8192, 8192, 2), (4096, 4096, 5), (32, 32, 2**16 + 1), (1, 2**26 + 1, 0)])
def test_more_pixels_than_a_file_may_hold_are_refused_before_anything_is_packed(size):
    H, W, count = size
    assert H * W * max(count, 1) > MOST_PIXELS
    message = re.escape(f"{max(count, 1)} × {H}×{W} pixels") + ".* a file holds 67 megapixels at most.*: split them"
    with pytest.raises(ValueError, match=message) as refused:
        pack(Header(H, W, count, 50), b"", MODEL)
    assert refused.type is ValueError                       # no CorruptStream: the caller's own images are meant


@pytest.mark.parametrize("size", [(0, 5, 0), (5, 0, 0), (0, 0, 3)])
def test_images_without_pixels_are_refused(size):
    with pytest.raises(ValueError, match="there is nothing to compress"):
        check_size(*size)


@pytest.mark.parametrize("size", [(1, 1, 2**26), (1, 2**26, 0), (2**26, 1, 0)])
def test_sizes_whose_tiles_need_far_more_memory_than_their_pixels_are_refused(size):
    with pytest.raises(ValueError, match="megapixels at most"):     # 2²⁶ tiles of 32×32 are half a terabyte
        check_size(*size)
