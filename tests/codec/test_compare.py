"""The best picture within a budget of bytes, and the curves of a record."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from dcae_lib import to_model
from dcae_lib.codec import compare
from dcae_lib.codec.compare import decode, encode
from dcae_lib.metrics import psnr


def points(*bpp, constant=(0, 0, 0)):
    """A curve whose PSNR and SSIM rise with the bits."""
    scores = [dict(bpp=b, psnr=20 + 6 * float(np.log2(1 + b)), ssim=1 - 0.5 ** (1 + b)) for b in bpp]
    return [dict(quality=10 + 40 * k, constant=c, **score) for k, (score, c) in enumerate(zip(scores, constant))]


SHARED = {"DCAE": (4, 4, 4), "AVIF": (281, 283, 283), "WebP": (28, 30, 29), "JPEG": (607, 607, 609)}
CURVES = {
    name: dict(whole=points(1, 2, 4), stripped=points(0.5, 1, 2, constant=shared), mosaic=points(0.4, 0.9, 1.9))
    for name, shared in SHARED.items()
} | {"KLT": points(1, 2, 3)}
RECORD = dict(curves=CURVES)
CONSTANT = compare.constants(RECORD)


@pytest.fixture(scope="module")
def files(codec, images):
    return compare.candidates(codec, images[0])


# ---- the best picture within a budget of bytes


def test_candidates_are_files_of_their_codec(codec, images, files):
    x = images[0]
    assert list(files) == [*compare.NAMES, compare.STANDARD]
    for kind, encoded in files.items():
        name = kind.split(",")[0]
        assert [file.quality for file in encoded] == list(compare.QUALITIES[name])
        changes = dict(optimize=False) if kind == compare.STANDARD else {}
        for file in encoded[::10]:
            ours = name == "DCAE"
            data = codec.compress(x, file.quality) if ours else encode(name, x, file.quality, **changes)
            assert file.name == name and file.data == data and file.size == len(data)
            decoded = codec.decompress(data) if ours else decode(data)
            assert (file.image.int() - decoded.int()).abs().max() <= ours  # floats round otherwise in a batch
            assert file.psnr == pytest.approx(psnr(to_model(file.image)[None], to_model(x)[None]).item(), abs=1e-3)


@pytest.mark.parametrize("headers", [True, False])
def test_larger_budgets_never_give_worse_pictures(files, headers):
    for encoded in compare.counted(files, headers, CONSTANT).values():
        chosen = [compare.best(encoded, budget) for budget in range(0, 1200, 4)]
        scores = [file.psnr if file else -1.0 for file in chosen]
        assert scores == sorted(scores) and scores[0] == -1 and scores[-1] > 28
        assert all(file is None or file.size <= budget for file, budget in zip(chosen, range(0, 1200, 4)))


def test_best_prefers_psnr_to_quality_and_then_fewer_bytes():
    rows = [(10, 90, 20.0), (20, 120, 26.0), (30, 110, 25.0), (40, 130, 25.5), (50, 140, 26.0)]
    some = [compare.Encoded("WebP", q, bytes(size), size, torch.zeros(3, 1, 1), score) for q, size, score in rows]
    chosen = [compare.best(some, budget) for budget in (89, 90, 110, 119, 120, 139, 999)]
    assert [file and file.quality for file in chosen] == [None, 10, 30, 30, 20, 20, 20]


def test_the_bytes_that_all_files_share_are_subtracted(files):
    counted = compare.counted(files, False, CONSTANT)
    assert {len(file.data) - file.size for file in counted["WebP"]} == {CONSTANT["WebP"]} == {28}
    assert {len(file.data) - file.size for file in counted["DCAE"]} == {4}


def test_jpeg_has_standard_tables_only_without_headers(files):
    whole, bare = (compare.counted(files, headers, CONSTANT)["JPEG"] for headers in (True, False))
    assert [file.data for file in whole] == [file.data for file in files["JPEG"]]
    assert [file.data for file in bare] == [file.data for file in files[compare.STANDARD]]


@pytest.mark.parametrize("record", [{}, dict(curves={}), dict(curves={"DCAE": dict(whole=points(1, 2))})])
def test_codecs_without_a_record_count_whole(files, record):
    assert compare.constants(record) == {}
    assert compare.counted(files, False, {}) == compare.counted(files, True, {})


def test_best_files_fit(codec, images):
    files = compare.candidates(codec, images[4])
    assert {compare.best(encoded, 7) for encoded in compare.counted(files, True, CONSTANT).values()} == {None}
    bare = {name: compare.best(encoded, 200) for name, encoded in compare.counted(files, False, CONSTANT).items()}
    assert list(bare) == list(compare.NAMES)
    assert all(160 < file.size <= 200 for file in bare.values())


# ---- curves


def test_bd_rate_is_the_mean_difference_of_log_bits():
    reference = [(1.0, 20.0), (2.0, 30.0), (4.0, 40.0)]
    assert compare.bd_rate([(0.8 * bits, quality) for bits, quality in reference], reference, 20, 40) == pytest.approx(
        -20
    )
    assert compare.bd_rate(reference[::-1], reference, 22, 38) == pytest.approx(0)
    steeper = [(1.0, 20.0), (16.0, 40.0)]  # from equal bits to 4 times as many: twice as many in the mean
    assert compare.bd_rate(steeper, reference, 20, 40) == pytest.approx(100)
    for low, high in ((19, 40), (20, 41)):
        with pytest.raises(ValueError, match=r"from 20\.00 to 40\.00 does not span"):
            compare.bd_rate(steeper, reference, low, high)


@pytest.mark.parametrize("metric, label", [("psnr", "PSNR, dB"), ("ssim", "SSIM")])
def test_lines_go_through_the_points_of_the_record(metric, label):
    fig, ax = plt.subplots()
    backwards = dict(stripped=CURVES["WebP"]["stripped"][::-1])
    compare.draw_curves(ax, dict(curves=CURVES | dict(WebP=backwards)), metric)  # in any order
    plt.close(fig)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {*SHARED, "KLT"} and len(set(compare.COLORS.values())) == 7
    for name, line in lines.items():
        curve = CURVES[name] if name == "KLT" else CURVES[name]["stripped"]
        assert line.get_color() == compare.COLORS[name]
        assert line.get_xydata().tolist() == [[point["bpp"], point[metric]] for point in curve]
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "bits per pixel", label)
