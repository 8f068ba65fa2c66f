"""Picture files: found, opened upright and in RGB, or refused in one line."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, features

from dcae_lib.data import DataError, image_files, open_picture, read_picture

NOISE = Image.effect_noise((400, 300), 99).convert("RGB")


def encoded(image, format="PNG", **options):
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def opened(content):
    return open_picture(io.BytesIO(content), "name")


def test_a_picture_is_read_from_path_or_open_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for file in (tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO((tmp_path / "a.png").read_bytes())):
        assert (read_picture(file).permute(1, 2, 0).numpy() == pixels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_stands_upright_as_its_exif_says(format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(NOISE, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(NOISE, format))).copy())
    turn = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)))).get(orientation)
    upright = upright if turn is None else upright.transpose(turn)
    for picture in (opened(content), open_picture(Image.open(io.BytesIO(content)))):
        assert picture.size == upright.size and picture.tobytes() == upright.tobytes()


@pytest.mark.parametrize("mode, format", [("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "TIFF")])
def test_images_without_three_channels_become_rgb(mode, format):
    content = encoded(Image.new("RGB", (4, 4), (204, 204, 204)).convert(mode), format)
    assert Image.open(io.BytesIO(content)).mode == mode
    assert opened(content).mode == "RGB" and set(opened(content).tobytes()) == {204}


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_an_animation_the_first_frame_is_opened(format):
    frames = dict(save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")], lossless=True)
    with pytest.warns(UserWarning, match="name has several pages or frames; only one is taken"):
        assert opened(encoded(Image.new("RGB", (4, 4), "red"), format, **frames)).getpixel((1, 1)) == (255, 0, 0)


def test_a_transparent_picture_is_put_on_white():
    content = encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 51)))
    assert opened(content).getpixel((1, 1)) == (244, 224, 204)


P3 = dict(rXYZ=(0.51512, 0.2412, -0.00105), gXYZ=(0.29198, 0.69225, 0.04189), bXYZ=(0.1571, 0.06657, 0.78407))
SRGB = dict(rXYZ=(0.43607, 0.2225, 0.01393), gXYZ=(0.38506, 0.71688, 0.0971), bXYZ=(0.14308, 0.06062, 0.71417))


def profile(primaries):
    """An ICC profile with the curve of sRGB and these primaries (XYZ at D50)."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for k in range(int.from_bytes(data[128:132])):
        name, start, _ = struct.unpack_from(">4sII", data, 132 + 12 * k)
        if values := primaries.get(name.decode()):
            struct.pack_into(">3i", data, start + 8, *(round(value * 65536) for value in values))
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_profile_become_those_of_srgb(format):
    pixels = np.random.default_rng(0).integers(90, 180, (8, 8, 3), np.uint8)  # all within sRGB
    light = np.where(pixels <= 10, pixels / 3294.6, ((pixels / 255 + 0.055) / 1.055) ** 2.4) @ np.array([*P3.values()])
    wanted = 255 * (1.055 * (light @ np.linalg.inv(np.array([*SRGB.values()]))).clip(0, 1) ** (1 / 2.4) - 0.055)
    content = encoded(Image.fromarray(pixels), format, icc_profile=profile(P3), lossless=True)
    assert np.abs(np.asarray(opened(content)) - wanted).max() < 1.5
    clear = Image.fromarray(np.dstack([pixels, np.full((8, 8), 128, np.uint8)]))
    content = encoded(clear, "PNG", icc_profile=profile(P3))
    assert np.abs(np.asarray(opened(content)) - (wanted * 128 / 255 + 127)).max() < 1.5
    content = encoded(Image.fromarray(pixels), format, icc_profile=profile({}), lossless=True)  # sRGB itself
    assert np.array_equal(np.asarray(opened(content)), pixels)


def test_a_profile_that_cannot_be_used_is_named():
    with pytest.warns(UserWarning, match="name has a colour profile that cannot be used"):
        assert opened(encoded(NOISE, icc_profile=b"no profile")).tobytes() == NOISE.tobytes()


BAD = {
    "text": (b"some text", "is not a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n", "is not a picture"),
    "truncated": (encoded(NOISE, "JPEG")[:-200], "cannot be read as a picture .*truncated"),
    "broken chunk": (b"\x8f\x05! ".join(encoded(NOISE).rsplit(b"IDAT", 1)), "cannot be read as a picture"),
    "16 bits": (
        encoded(Image.fromarray(np.full((32, 32), 9999, np.uint16))),
        "cannot .*more than 8 bits",
    ),
    "float": (encoded(Image.new("F", (32, 32)), "TIFF"), "cannot .*more than 8 bits"),
    "400 megapixels": (encoded(Image.new("1", (20_000, 20_000))), "cannot be read as a picture .*400000000 pixels"),
}
if features.check("avif"):
    avif = encoded(Image.new("RGB", (32, 32)), "AVIF")
    BAD["AVIF"] = avif.replace(b"pitm", b"pitx"), "cannot be read as a picture"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_refused_in_one_line(kind, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *command, **options: pytest.fail("Ghostscript was started"))
    if "megapixels" in kind:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    content, message = BAD[kind]
    with pytest.raises(DataError, match=f"^a name {message}.*$"), warnings.catch_warnings():
        warnings.simplefilter("error")
        open_picture(io.BytesIO(content), "a\nname")


def test_images_are_found_in_folders_and_through_links(tmp_path):
    (tmp_path / "deep").mkdir()
    hidden = (".ipynb_checkpoints/a-checkpoint.png", "deep/@eaDir/b.jpeg", "__MACOSX/a.png", "deep/._b.jpeg")
    for name in ("a.PNG", "deep/b.jpeg", "c.avif", "d.gif", "notes.txt", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "link.webp").symlink_to(tmp_path / "a.PNG")
    (tmp_path / "round").symlink_to(tmp_path)
    images = ("a.PNG", "c.avif", "d.gif", "deep/b.jpeg", "link.webp")
    assert sorted(image_files(tmp_path)) == [(name, 5) for name in images]
