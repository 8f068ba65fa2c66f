"""The explorers of the codec: what is shown fits into the bytes and is the best that does, and the curves are the record's."""

import base64
import io
import re
import statistics
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, features

from dcae_lib import Codec, ImageSet, compare, load_images, panels, plots, to_model
from dcae_lib.codec.baselines import decode, encode
from dcae_lib.metrics import psnr

BUDGETS = [60, 100, 148, 200, 300, 332, 400, 600]
AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")


def points(*bpp, constant=None, **more):
    """A curve: decibels and similarity rise with the bits."""
    found = []
    for k, bits in enumerate(bpp):
        score = dict(psnr=20 + 6 * float(np.log2(1 + bits)), ssim=1 - 0.5 ** (1 + bits))
        found.append(dict(quality=10 + 40 * k, bytes=128 * bits, bpp=bits) | score)
        if constant:
            found[-1]["constant"] = constant[k]
    return found


SHARED = {"DCAE": (4, 4, 4), "AVIF": (281, 283, 283), "WebP": (28, 30, 29), "JPEG": (607, 607, 609)}
RECORD = dict(curves={
    name: dict(whole=points(1, 2, 4), stripped=points(0.5, 1, 2, constant=shared), mosaic=points(0.4, 0.9, 1.9))
    for name, shared in SHARED.items()
} | {"KLT": points(1, 2, 3)})


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def images():
    return load_images().test


@pytest.fixture(scope="module")
def files(codec, images):
    return compare.candidates(codec, images.images[0])


@pytest.fixture(scope="module")
def built(codec, images):
    with plt.rc_context():
        plots.use_style()
        return compare.budget(codec, images, RECORD)


@pytest.fixture
def explorer(built):
    values = {name: control.value for name, control in built.controls.items()}
    yield built
    for name, value in values.items():
        built.controls[name].value = value
    assert built.message.value == ""


def pixels(picture):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(picture.image.value)))).permute(2, 0, 1)


def shown(explorer):
    return {name: (picture.image.value, picture.title.value) for name, picture in explorer.pictures.items()}


def decibels(y, x):
    return psnr(to_model(y)[None], to_model(x)[None]).item()


def text_of(widget):
    if isinstance(widget, widgets.HTML):
        return widget.value
    return " ".join(map(text_of, getattr(widget, "children", ())))


# ---- the best picture for so many bytes


def test_a_preview_is_what_comes_out_of_the_bytes_to_the_pixel(codec, images):
    for x, quality in [(images.images[0], 0), (images.images[1], 37), (images.images[2], 100), (images.images[3, :, :30, :7], 60)]:
        assert torch.equal(codec.preview(x, quality)[0], codec.decompress(codec.compress(x, quality)))
    odd = torch.cat([*images.images[:3]], 2)[None, :, :29, :77].repeat(2, 1, 1, 1)
    assert torch.equal(codec.preview(odd, 50), codec.decompress(codec.compress(odd, 50)))


def test_each_candidate_is_the_file_that_its_codec_writes_and_the_picture_in_it(codec, images, files):
    x = images.images[0]
    for kind, name, changes in [("AVIF", "AVIF", {}), ("WebP", "WebP", {}), ("JPEG", "JPEG", {}), (compare.STANDARD, "JPEG", dict(optimize=False))]:
        if kind in files:
            assert [file.quality for file in files[kind]] == list(compare.QUALITIES[name])
            for file in files[kind][::10]:
                assert file.data == encode(name, x, file.quality, **changes) and torch.equal(file.image, decode(file.data))
                assert file.name == name and file.size == len(file.data) and file.psnr == pytest.approx(decibels(file.image, x), abs=1e-3)
    for file in files["DCAE"][::5]:
        assert file.data == codec.compress(x, file.quality) and torch.equal(file.image, codec.decompress(file.data))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("headers", [True, False])
def test_what_is_chosen_fits_and_no_candidate_that_fits_is_better(files, budget, headers):
    constant = compare.constants(RECORD)
    for name, of in compare.counted(files, headers, constant).items():
        found = compare.best(of, budget)
        fitting = [file for file in of if file.size <= budget]
        assert (found is None) == (not fitting)
        if found:
            assert found.name == name and found.psnr == max(file.psnr for file in fitting)
            assert len(found.data) - (0 if headers else max(SHARED[name])) <= found.size <= budget


@pytest.mark.parametrize("headers", [True, False])
def test_a_larger_budget_never_gives_a_worse_picture(files, headers):
    for of in compare.counted(files, headers, compare.constants(RECORD)).values():
        scores = [found.psnr if (found := compare.best(of, budget)) else -1.0 for budget in range(0, 1200, 4)]
        assert scores == sorted(scores) and scores[0] == -1 and scores[-1] > 28


def test_a_longer_file_of_a_higher_quality_that_looks_worse_is_not_chosen():
    def file(quality, size, score):
        return compare.Encoded("WebP", quality, bytes(size), size, torch.zeros(3, 1, 1), score)

    some = [file(10, 90, 20.0), file(20, 120, 26.0), file(30, 110, 25.0), file(40, 130, 25.5), file(50, 140, 26.0)]
    chosen = [compare.best(some, budget) for budget in (89, 90, 110, 119, 120, 139, 999)]
    assert [found and found.quality for found in chosen] == [None, 10, 30, 30, 20, 20, 20]


def test_without_headers_as_many_bytes_are_left_out_as_the_neighbours_in_the_record_both_share(files):
    counted = compare.counted(files, False, compare.constants(RECORD))
    known = dict(zip((10, 50, 90), SHARED["WebP"]))
    expected = {5: 28, 10: 28, 11: 28, 49: 28, 50: 30, 51: 29, 90: 29, 95: 29}
    for file in counted["WebP"]:
        if file.quality in expected:
            assert len(file.data) - file.size == expected[file.quality], (file.quality, known)
    assert {len(file.data) - file.size for file in counted["DCAE"]} == {4}


def test_a_jpeg_counts_with_its_own_tables_when_whole_and_with_the_standard_ones_without_headers(files):
    whole, bare = (compare.counted(files, headers, compare.constants(RECORD))["JPEG"] for headers in (True, False))
    assert [file.data for file in whole] == [file.data for file in files["JPEG"]]
    assert [file.data for file in bare] == [file.data for file in files[compare.STANDARD]]


def test_a_codec_without_a_record_counts_whole(files):
    for record in ({}, dict(curves={}), dict(curves={"DCAE": dict(whole=points(1, 2))})):
        assert compare.constants(record) == {}
        assert compare.counted(files, False, {}) == compare.counted(files, True, {})


def test_within_gives_a_file_of_each_codec_or_nothing(codec, images):
    x = images.images[4]
    with pytest.raises(ValueError, match="constant=constants"):
        compare.within(codec, x, 200, headers=False)
    assert set(compare.within(codec, x, 7).values()) == {None}      # no file of any of them is that short
    bare = compare.within(codec, x, 200, headers=False, constant=compare.constants(RECORD))
    assert [*bare] == [name for name in compare.NAMES if name != "AVIF" or features.check("avif")]
    for found in bare.values():
        assert found.size <= 200 < found.size + 40                       # and next to nothing of it is wasted
    assert torch.equal(codec.decompress(bare["DCAE"].data), bare["DCAE"].image)


def test_a_pillow_without_avif_shows_three_codecs_and_says_so(codec, images, monkeypatch):
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    assert [*compare.within(codec, images.images[0], 400)] == ["DCAE", "WebP", "JPEG"]
    few = ImageSet(images.images[:1], None, "few", "")
    explorer = compare.budget(codec, few, RECORD)
    assert [*explorer.pictures] == ["original", "DCAE", "WebP", "JPEG", "bits"]
    assert "AVIF is left out" in text_of(explorer) and not explorer.message.value


# ---- the explorer of budgets


def test_the_explorer_is_a_widget_where_a_kernel_is_and_a_small_picture_elsewhere(built):
    bundle = built._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == built.model_id
    image = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    image.load()
    assert image.format == "PNG" and image.width == 800 and len(bundle["image/png"]) <= 150_000
    assert len(np.unique(np.array(image).reshape(-1, 4), axis=0)) > 100
    assert built.message.value == "" and not plt.get_fignums()
    assert "AVIF is left out" not in text_of(built)


@AVIF
@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("budget", [60, 200, 348, 600])
def test_titles_say_the_bytes_of_files_that_fit_and_hold_the_pictures_shown(explorer, codec, images, files, budget, headers):
    explorer.controls["headers"].value, explorer.controls["bytes"].value = headers, budget
    counted = compare.counted(files, headers, compare.constants(RECORD))
    for name in compare.NAMES:
        title, drawn = explorer.pictures[name].title.value, pixels(explorer.pictures[name])
        said = re.search(r"quality (\d+)<br>(\d+)(?: of (\d+))? bytes, ([\d.]+) dB", title)
        if said:
            quality, size, whole = int(said[1]), int(said[2]), int(said[3] or said[2])
            kind = compare.STANDARD if name == "JPEG" and not headers else name
            file = next(file for file in files[kind] if file.quality == quality)
            assert len(file.data) == whole and size <= budget and (whole == size) == headers
            assert torch.equal(drawn, codec.decompress(file.data) if name == "DCAE" else decode(file.data))
            assert said[4] == f"{decibels(drawn, images.images[0]):.1f}"
        else:
            least = min(file.size for file in counted[name])
            assert f"<b>{name}</b> does not fit:<br>the smallest has {least} bytes" == title and least > budget
            assert torch.equal(drawn, compare.NOTHING)
    assert torch.equal(pixels(explorer.pictures["original"]), images.images[0])


def test_the_map_has_the_bits_of_all_channels_at_each_site(explorer, codec, images):
    explorer.controls["bytes"].value = 200
    quality = int(re.search(r"quality (\d+)", explorer.pictures["DCAE"].title.value)[1])
    bits = codec.costs(images.images[0], quality)[0].sum(0)
    colours = plt.get_cmap("magma")((bits / bits.max()).numpy(), bytes=True)[..., :3]
    assert np.array_equal(pixels(explorer.pictures["bits"]).permute(1, 2, 0).numpy(), colours)
    assert explorer.pictures["bits"].title.value.endswith(f"0 dark … {bits.max():.0f} bright")
    assert bits.sum() / 8 == pytest.approx(len(codec.compress(images.images[0], quality)), abs=12)


@AVIF
@pytest.mark.parametrize("control, value, changed", [
    ("image", 5, {"original", "DCAE", "AVIF", "WebP", "JPEG", "bits"}),
    ("bytes", 200, {"DCAE", "AVIF", "WebP", "JPEG", "bits"}),
    ("headers", False, {"AVIF", "JPEG"}),                                # of WebP and ours, a few bytes more may change nothing
])
def test_each_control_changes_what_depends_on_it_and_moves_back(explorer, control, value, changed):
    start, before = shown(explorer), explorer.controls[control].value
    explorer.controls[control].value = value
    now = {name for name, (data, _) in shown(explorer).items() if data != start[name][0]}
    assert changed <= now and ("original" in now) == ("original" in changed)
    explorer.controls[control].value = before
    assert shown(explorer) == start


def test_where_ours_does_not_fit_the_map_is_dark(explorer, monkeypatch):
    best = compare.best
    monkeypatch.setattr(compare, "best", lambda files, budget: None if files[0].name == "DCAE" else best(files, budget))
    explorer.controls["bytes"].value = 300
    assert "does not fit" in explorer.pictures["DCAE"].title.value
    assert pixels(explorer.pictures["bits"]).max() < 8 and "0 bright" in explorer.pictures["bits"].title.value


def test_a_move_of_the_slider_is_shown_at_once_and_an_image_is_prepared_once(explorer, codec, monkeypatch):
    compressed, compress = [], codec.compress
    monkeypatch.setattr(codec, "compress", lambda *arguments: compressed.append(1) or compress(*arguments))
    taken = []
    for k in range(40):
        start = time.perf_counter()
        explorer.controls["bytes"].value = 60 + 12 * k
        taken.append(time.perf_counter() - start)
    assert statistics.median(taken) < 0.2 and not compressed            # 15 ms; a machine may be busy
    explorer.controls["image"].value = 7
    assert len(compressed) == len(compare.QUALITIES["DCAE"])
    explorer.controls["image"].value = 0
    explorer.controls["image"].value = 7
    assert len(compressed) == len(compare.QUALITIES["DCAE"])


def test_what_fails_is_told_below_and_the_pictures_stay(explorer, codec, monkeypatch):
    before = shown(explorer)
    with monkeypatch.context() as patch:
        patch.setattr(codec, "costs", lambda *_: 1 / 0)
        explorer.controls["bytes"].value = 100
    assert "ZeroDivisionError" in explorer.message.value and shown(explorer) == before
    explorer.controls["bytes"].value = 104
    assert explorer.message.value == "" and shown(explorer) != before


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_images_of_any_size_are_enough(codec, images, count):
    few = ImageSet(images.images[:count, :, :27, :30], None, "few", "")
    explorer = compare.budget(codec, few, {})
    assert not explorer.message.value and pixels(explorer.pictures["original"]).shape == (3, 27, 30)


# ---- curves


def lines_of(record, *how):
    fig, ax = plt.subplots()
    compare.draw_curves(ax, record, *how)
    fig.canvas.draw()
    plt.close(fig)
    return ax, {line.get_label(): line for line in ax.lines}


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
@pytest.mark.parametrize("way", ["whole", "stripped", "mosaic"])
def test_a_line_goes_through_the_points_of_the_record(metric, way):
    ax, lines = lines_of(RECORD, metric, way)
    assert set(lines) == {*SHARED, *(["KLT"] if way == "stripped" else [])}
    for name, line in lines.items():
        curve = RECORD["curves"][name] if name == "KLT" else RECORD["curves"][name][way]
        assert line.get_xydata().tolist() == [[point["bpp"], point[metric]] for point in curve]
    assert len({line.get_color() for line in lines.values()}) == len(lines)
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "bits per pixel" and ax.get_ylabel() == {"psnr": "PSNR, dB", "ssim": "SSIM"}[metric]
    assert lines["DCAE"].get_color() == plots.BLUE and lines["DCAE"].get_linewidth() > 2 * lines["JPEG"].get_linewidth() - 0.1
    if way == "stripped":
        assert lines["KLT"].get_linestyle() == "--"


def test_a_codec_keeps_its_colour_whoever_else_is_there():
    whole = RECORD["curves"] | {"JPEG XL": RECORD["curves"]["JPEG"], "JPEG 2000": RECORD["curves"]["JPEG"]}
    _, all_lines = lines_of(dict(curves=whole))
    assert len(all_lines) == 7
    for name in whole:
        _, lines = lines_of(dict(curves={key: curve for key, curve in whole.items() if key != name}))
        assert {key: line.get_color() for key, line in lines.items()} == {key: all_lines[key].get_color() for key in whole if key != name}


@pytest.mark.parametrize("record", [{}, dict(curves={}), dict(curves={"KLT": points(1, 2)}), dict(curves={"DCAE": dict(whole=points(1, 2))})])
def test_a_record_that_is_not_complete_is_drawn_as_far_as_it_goes(record):
    explorer = compare.curves(record)
    for metric in ("ssim", "psnr"):
        for way in ("whole", "stripped", "mosaic"):
            explorer.controls["metric"].value, explorer.controls["way"].value = metric, way
            assert explorer.message.value == "" and Image.open(io.BytesIO(explorer.pictures["curves"].image.value)).width == 1280


def test_points_are_joined_in_the_order_of_their_bits():
    _, lines = lines_of(dict(curves={"JPEG XL": dict(stripped=points(1, 2, 4)[::-1])}))
    assert [*lines["JPEG XL"].get_xdata()] == [1, 2, 4]


def test_buttons_choose_the_curves_and_the_first_figure_comes_back():
    explorer = compare.curves(RECORD)
    picture, found = explorer.pictures["curves"].image, {}
    start = picture.value
    for metric in ("psnr", "ssim"):
        for way in compare.WAYS.values():
            explorer.controls["metric"].value, explorer.controls["way"].value = metric, way
            found[metric, way] = picture.value
    assert len(set(found.values())) == 6 and found["psnr", "stripped"] == start
    assert (explorer.controls["way"].options, explorer.message.value) == (compare.WAYS, "")
    still = Image.open(io.BytesIO(base64.b64decode(explorer.still)))
    assert still.size == (640, 400) and len(explorer.still) < 60_000 and not plt.get_fignums()


def test_what_fails_while_curves_are_drawn_is_told_below(monkeypatch):
    explorer = compare.curves(RECORD)
    before = explorer.pictures["curves"].image.value
    monkeypatch.setattr(compare, "draw_curves", lambda *_: 1 / 0)
    explorer.controls["metric"].value = "ssim"
    assert "ZeroDivisionError" in explorer.message.value and explorer.pictures["curves"].image.value == before
    assert isinstance(explorer, panels.Explorer)
