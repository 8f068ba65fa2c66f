"""The codec in a page and the codec in Python: two implementations of one format."""

import re
import runpy

import constriction
import numpy as np
import pytest
import torch
from lab import ROOT, Opened
from safetensors.torch import load_file

from dcae_lib import Codec, load_images
from dcae_lib.codec import coder
from dcae_lib.codec.bitstream import Header, pack
from dcae_lib.codec.integer import tables
from dcae_lib.data import as_png, read_picture
from dcae_lib.files import resource

GOLDEN = ROOT / "tests" / "codec" / "golden"
make = runpy.run_path(str(GOLDEN / "make.py"))
READ = """async file => {
    const {y, header} = await c.read(codec, Uint8Array.from(file)), {height: H, width: W, images} = header;
    const shape = [...images ? [images] : [], 3, H, W];
    return {
        latents: y.map(levels => levels.map(({shape, data}) => [shape, [...data]])),
        again: [...c.write(codec, await c.model(codec, H, W), shape, y, header.quality)],
        pixels: [...(await c.decompress(codec, Uint8Array.from(file))).data],
    };
}"""
ENCODE = """([levels, quality]) => c.model(codec, 32, 32).then(w => [...c.encode(
    levels.map(([shape, data]) => ({shape, data})),
    levels.map((_, k) => new c.IntegerContext(w, `contexts.${k}`, quality)), codec.tables)])"""
ALL_SYMBOLS = """() => {
    const encoder = new c.RangeEncoder(codec.tables);
    for (let row = 0; row < 512; row++) for (let symbol = 0; symbol < 129; symbol++) encoder.symbol(row, symbol);
    return [...encoder.finish()];
}"""
PIXELS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def module(browser, site):
    """Open a page with the module and the loaded codec as `c` and `codec`."""
    page = Opened(browser).page
    page.goto(f"{site[1]}search.html")
    page.evaluate("async () => { c = await import('./live/codec.js') }")
    page.evaluate("async () => { codec = await c.load(new URL('live/weights/', location)) }")
    yield page
    page.close()


@pytest.fixture
def opened(browser, site):
    """Open the codec's page, and wait until it has found the best of each codec."""
    opened = Opened(browser, width=390, height=800)
    opened.page.goto(f"{site[1]}codec.html")
    settle(opened.page)
    yield opened
    assert [url for url in opened.asked if not url.startswith((site[1], "data:", "blob:"))] == []
    assert opened.errors() == []
    opened.page.close()


def settle(page):
    """Wait until all captions are complete, and stay as they are for half a second."""
    page.evaluate("() => { window.before = window.still = undefined }")
    page.wait_for_function("""() => {
        const texts = [...document.querySelectorAll('figcaption, .dcae-hint')].map(e => e.textContent).join();
        const done = texts && !/…|of 11/.test(texts) && texts === window.before;
        [window.still, window.before] = [done ? window.still ?? performance.now() : undefined, texts];
        return performance.now() - window.still > 500;
    }""")


def caption(page, name):
    return page.locator(f".dcae-picture:has([data-picture={name}]) figcaption").inner_text()


def give(page, label, name, content):
    page.get_by_label(label).set_input_files({"name": name, "mimeType": "", "buffer": content})


def levels_apart(pixels, image):
    return (torch.tensor(pixels).view(image.shape) - image.int()).abs()


def test_golden_streams_decode_to_the_recorded_latents_and_back(module, codec):
    recorded, apart = load_file(GOLDEN / "latents.safetensors"), []
    for name, latents in recorded.items():
        data = (GOLDEN / f"{name}.dcae").read_bytes()
        found = module.evaluate(READ, list(data))
        for image, levels in zip(latents, found["latents"], strict=True):
            y = torch.cat([torch.tensor(part).view(shape).flatten(1) for shape, part in levels], 1)
            assert torch.equal(y, image.float()), name
        assert bytes(found["again"]) == data, name
        apart.append(levels_apart(found["pixels"], codec.decompress(data)).flatten())
    assert torch.cat(apart).max() <= 1, "pixels differ by more than a level"
    print(f"{int(torch.cat(apart).sum())} of {torch.cat(apart).numel():,} values differ by a level")


def test_python_decodes_what_the_page_compresses(module, codec):
    test, photo = load_images("sample").test.images, read_picture(resource("photos") / "coffee.webp")
    compress = "async ([shape, data, q]) => [...await c.compress(codec, {shape, data: Uint8Array.from(data)}, q)]"
    for images in (test[0], test[:4], test[5, :, :31, :9], photo[:, 100:175, 200:250], photo[:, :150, :100]):
        for quality in (0, 55, 100):
            data = bytes(module.evaluate(compress, [list(images.shape), images.flatten().tolist(), quality]))
            decoded, ours = codec.decompress(data), codec.compress(images, quality)
            assert decoded.shape == images.shape and abs(len(data) - len(ours)) <= 2 + len(ours) / 500
            assert levels_apart(module.evaluate(READ, list(data))["pixels"], decoded).max() <= 1
            assert (decoded.int() - codec.decompress(ours).int()).abs().float().mean() < 0.05


def test_all_tables_and_rare_endings_give_the_same_bytes(module, codec):
    encoder, rows = constriction.stream.queue.RangeEncoder(), np.arange(512).repeat(129)
    encoder.encode(np.tile(np.arange(129, dtype=np.int32), 512), coder.CATEGORICAL, tables()[rows])
    assert bytes(module.evaluate(ALL_SYMBOLS)) == coder._shortest(encoder)
    generator = torch.Generator().manual_seed(0)
    for k in range(150):  # latents that no picture has: beyond the tables, and up to the largest
        spread, quality = 2.0 ** (k % 16), k % 101
        levels = [
            (torch.randn(1, 16, h, w, generator=generator) * spread).round().clamp(-32767, 32767)
            for h, w in ((1, 1), (2, 3))
        ]
        sent = [[list(level.shape), level.flatten().tolist()] for level in levels]
        expected = coder.encode(levels, [1], codec.contexts(8, 12, quality))[0]
        assert bytes(module.evaluate(ENCODE, [sent, quality])) == expected, k


def test_pictures_follow_the_budget_by_keyboard(opened):
    page = opened.page
    slider = page.get_by_role("slider", name="budget")
    budget = int(re.search(r"\d+", slider.get_attribute("aria-valuetext"))[0])
    for name in ("DCAE", "WebP", "JPEG"):
        assert 0 <= budget - int(re.search(r"(\d+) bytes", caption(page, name))[1]) < 40, name
    before = caption(page, "DCAE")
    page.get_by_title("coffee").click()  # its network is still to be loaded when the frog is chosen again
    page.get_by_title("frog").click()
    settle(page)
    assert caption(page, "DCAE") == before
    slider.press("Home")
    settle(page)
    smallest = int(re.search(r"has (\d+) bytes", caption(page, "JPEG"))[1])
    assert "does not fit" in caption(page, "JPEG") and smallest > 250
    page.get_by_label("count headers").press(" ")
    settle(page)
    assert int(re.search(r"has (\d+) bytes", caption(page, "JPEG"))[1]) < smallest - 150
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_files_are_saved_and_opened(opened, codec, tmp_path):
    page = opened.page
    photo = read_picture(resource("photos") / "cat.webp")[:, 100:150, 200:275]
    give(page, "your picture …", "cat.png", as_png(photo))
    page.locator("figcaption").filter(has_text="75×50").wait_for()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="save as .dcae").click()
    download.value.save_as(tmp_path / "cat.dcae")
    data = (tmp_path / "cat.dcae").read_bytes()
    image = codec.decompress(data)
    give(page, "open a .dcae file …", download.value.suggested_filename, data)
    page.get_by_text(f"75×50 pixels, quality {data[11]}, {len(data)} bytes").wait_for()
    for canvas in ("[data-picture=DCAE]", ".budget-file canvas"):
        shown = torch.tensor(page.locator(canvas).evaluate(PIXELS)).view(50, 75, 4)[:, :, :3].permute(2, 0, 1)
        assert (shown - image.int()).abs().max() <= 1, canvas
    give(page, "open a .dcae file …", "b.dcae", (GOLDEN / "batch-37.dcae").read_bytes())
    page.get_by_text("b.dcae: a batch of 3 × 32×32 pixels, quality 37, 320 bytes, 0.83 bits per pixel").wait_for()


def test_files_that_cannot_be_opened_are_told_in_the_same_words(opened, codec):
    page, data = opened.page, (GOLDEN / "frog-37.dcae").read_bytes()
    for content in (
        data[:3],
        data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        data[:1] + bytes([data[1] ^ 1]) + data[2:],
        b"\xd1" + data[1:],
        as_png(torch.zeros(3, 8, 8, dtype=torch.uint8)),
        *(
            pack(Header(*header), b"\xff" * 9, codec.identity)
            for header in ((9, 9, 0, 101), (9, 0, 0, 50), (9, 9, 0, 50))
        ),
    ):
        with pytest.raises(ValueError, match=r"\w") as error:
            codec.decompress(content)
        give(page, "open a .dcae file …", "a.dcae", content)
        page.get_by_role("alert").filter(has_text=f"a.dcae cannot be opened: {error.value}.").wait_for()
    give(page, "open a .dcae file …", "a.dcae", pack(Header(2000, 3000, 0, 50), b"", codec.identity))
    page.get_by_role("alert").filter(has_text="3000×2000 pixels are too many for a page").wait_for()
    dropped = "() => { const d = new DataTransfer(); d.items.add(new File(['no picture'], 'notes.txt')); return d }"
    page.locator(".dcae-budget").dispatch_event("drop", {"dataTransfer": page.evaluate_handle(dropped)})
    page.get_by_role("alert").filter(has_text="notes.txt is not a picture").wait_for()
