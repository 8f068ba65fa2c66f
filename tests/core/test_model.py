"""The default model is the one of the design, stage by stage; it checks its inputs, and keeps in a folder."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from dcae_lib import DCAE, load_images, model, to_model
from dcae_lib.metrics import psnr

patient = settings(max_examples=40)


@pytest.fixture(scope="module")
def pictures():
    """Floats [32, 3, 32, 32] in [-1, 1]."""
    return to_model(load_images("sample").test.images[:32])


# ---- architecture


def test_the_default_model_has_96019_parameters():
    counts = [sum(p.numel() for p in m.parameters()) for m in (DCAE(), DCAE().encoder, DCAE(up_kernel=2))]
    assert counts == [96_019, 45_312, 86_803]


@pytest.mark.parametrize("up_kernel", [2, 3, 4])
@pytest.mark.parametrize("shortcut", ["pool", "direct", "none"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_down_block_divides_the_side_by_four(shortcut, up_kernel, device):
    for channels, f in (((16, 32), 4), ((16, 32, 64), 16)):
        autoencoder = DCAE(channels=channels, latent_channels=24, shortcut=shortcut, up_kernel=up_kernel).to(device)
        for H, W in ((32, 64), (3 * f, 5 * f), (f, 2 * f)):
            x = torch.zeros(2, 3, H, W, device=device)  # on "meta" there are no values that a check could read
            assert autoencoder.encode(x).shape == (2, 24, H // f, W // f)
            assert autoencoder(x).shape == x.shape


@torch.no_grad()
def test_the_recorded_weights_give_their_psnr(pictures):
    assert psnr(DCAE.from_pretrained()(pictures), pictures).mean() == pytest.approx(37.25, abs=0.05)


def test_arguments_reach_the_parts_that_they_name():
    for kind, names in dict(pool=("pool_down", "pool_up"), direct=("direct_down", "direct_up")).items():
        blocks = DCAE(shortcut=kind).encoder.down[0], DCAE(shortcut=kind).decoder.up[0]
        assert tuple(block.shortcut.__name__ for block in blocks) == names
    modules = list(DCAE().modules())
    assert {m.num_groups for m in modules if isinstance(m, nn.GroupNorm)} == {8}
    assert {m.p for m in modules if isinstance(m, nn.Dropout)} == {0.0}
    rates = {n: m.p for n, m in DCAE(dropout=0.1, stage_dropout=0.2).named_modules() if isinstance(m, nn.Dropout)}
    assert rates.pop("decoder.head.3") == 0.0 and rates.pop("encoder.stage.shortcut.3") == 0.2
    assert set(rates.values()) == {0.1}
    assert DCAE(dropout=0.1).encoder.stage.shortcut[3].p == 0.1
    for kernel in (2, 3, 4):
        up = DCAE(channels=(16, 32, 64), up_kernel=kernel).decoder.up
        assert [m.kernel_size[0] for m in up.modules() if isinstance(m, nn.ConvTranspose2d)] == [kernel] * 4


# ---- gradients, memory format and precision


def without_gradient(autoencoder, x):
    """Names of the parameters whose gradient is missing or all zero after one backward."""
    autoencoder.zero_grad()
    F.l1_loss(autoencoder(x), x).backward()
    return {name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()}


BEFORE_ZERO = {"pool": ["encoder.down.0", "decoder.up.0"], "direct": ["encoder.down.0", "decoder.up.0"], "none": []}


@pytest.mark.parametrize("shortcut, branches", BEFORE_ZERO.items())
def test_at_first_only_what_stands_before_zero_has_no_gradient(shortcut, branches, pictures):
    # A branch ends in y = W·h + b with W = 0. ∂L/∂W = ∂L/∂y·hᵀ and ∂L/∂b = ∂L/∂y are not zero; ∂L/∂h = Wᵀ·∂L/∂y is,
    # and with it the gradient of the first unit of the branch and of the norm before W. The shortcut carries the rest.
    branches = [*branches, *(f"{half}.stage.branch.{k}" for half in ("encoder", "decoder") for k in (0, 1))]
    layers = [f"{layer}.{kind}" for layer in ("0.0", "0.2", "1.0") for kind in ("weight", "bias")]
    torch.manual_seed(0)
    autoencoder = DCAE(shortcut=shortcut)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=4e-3)
    for step in range(4):
        found = without_gradient(autoencoder, pictures)
        assert step or found == {f"{branch}.branch.{layer}" for branch in branches for layer in layers}
        optimizer.step()
    assert found == without_gradient(DCAE(shortcut=shortcut, zero_init=False), pictures[:4]) == set()


@pytest.mark.parametrize("zero_init", [True, False])
@torch.no_grad()
def test_channels_last_and_bfloat16_give_nearly_the_same_picture(zero_init, pictures):
    torch.manual_seed(0)
    autoencoder = DCAE(zero_init=zero_init).eval()
    y = autoencoder(pictures)
    last = autoencoder(pictures.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, rtol=0, atol=5e-5)  # measured on four seeds: 2e-6 to 5e-6 at most
    with torch.autocast("cpu", torch.bfloat16):
        half = autoencoder(pictures)
    assert half.dtype == torch.bfloat16
    error = (half - y).abs()  # measured on four seeds: mean 0.002 to 0.004, at most 0.05
    assert error.mean() < 0.01 and error.max() < 0.2


WRONG = [
    ("encode", torch.empty(2, 3, 30, 32), r"multiples of 4, got 30×32; pad or crop the images first"),
    ("encode", torch.empty(2, 3, 32, 33), r"multiples of 4, got 32×33; pad or crop"),
    ("encode", torch.empty(2, 3, 0, 32), r"multiples of 4, got 0×32"),
    ("encode", torch.empty(2, 1, 32, 32), r"images must be floats \[B, 3, H, W\], got torch.float32 \[2, 1, "),
    ("encode", torch.empty(3, 32, 32), r"got torch.float32 \[3, 32, 32\]; x\[None\] makes a batch of one"),
    ("encode", torch.empty(2, 3, 1, 32, 32), r"got torch.float32 \[2, 3, 1, 32, 32\]"),
    ("encode", torch.empty(2, 3, 32, 32, dtype=torch.uint8), r"got torch.uint8 .*to_model\(x\) scales uint8"),
    ("decode", torch.empty(2, 16, 8, 8, dtype=torch.int64), r"latents must be floats \[B, 16, H, W\], got torch.int64"),
    ("decode", torch.empty(2, 32, 8, 8), r"got torch.float32 \[2, 32, 8, 8\]"),
    ("decode", torch.empty(16, 8, 8), r"got torch.float32 \[16, 8, 8\]"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("method, x, message", WRONG)
def test_inputs_are_refused_by_shape_and_dtype_alone(method, x, message, device):
    with pytest.raises(ValueError, match=message):
        getattr(DCAE().to(device), method)(x.to(device))
    with pytest.raises(ValueError, match="multiples of 16, got 32×40"):
        DCAE(channels=(16, 32, 64)).to(device)(torch.empty(2, 3, 32, 40, device=device))


IMPOSSIBLE = [
    *((dict(channels=widths), r"two or more positive widths, got \(") for widths in [(16,), (), (16, 0)]),
    (dict(latent_channels=0), "latent 0"),
    (dict(stage_dropout=1.5), "dropout probability has to be between 0 and 1"),
    (dict(channels=(3, 6)), 'shortcut="pool" cannot go from 3 to 6 channels; doubling them always works'),
    (dict(channels=(16, 32, 48)), "cannot go from 32 to 48"),
    (dict(channels=(16, 24), shortcut="direct"), 'shortcut="direct" cannot go from 16 to 24'),
]


@pytest.mark.parametrize("arguments, message", IMPOSSIBLE)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCAE(**arguments)


@patient
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["pool", "direct", "none"]))
def test_admitted_widths_work_and_no_others_are_refused(i, o, shortcut):
    try:
        autoencoder = DCAE(channels=(i, o), latent_channels=4, shortcut=shortcut)
    except ValueError:  # the way up takes the same widths as the way down, so these two rules are all
        assert shortcut != "none" and ((4 * i % o or o % 4) if shortcut == "pool" else 16 * i % o)
    else:
        assert autoencoder(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)


# ---- a folder


@pytest.fixture(scope="module")
def files():
    torch.manual_seed(0)
    return model.pretrained_files(DCAE(channels=(8, 16), latent_channels=4))


@pytest.fixture
def folder(tmp_path, files):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_saved_model_comes_back_bit_for_bit(memory_format, tmp_path, pictures):
    arguments = dict(channels=(8, 16, 32), latent_channels=5, shortcut="direct", groups=4, dropout=0.01)
    arguments |= dict(stage_dropout=0.05, up_kernel=3, zero_init=False)
    saved = DCAE(**arguments).to(memory_format=memory_format)
    folder = saved.save_pretrained(tmp_path / "new" / "folder", note="of a run")
    assert folder == tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text()) == arguments | {"channels": [8, 16, 32]}
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"note": "of a run"}
    for place in (folder, str(folder)):
        loaded = DCAE.from_pretrained(place)
        assert loaded.config == saved.config == arguments
        assert not any(module.training for module in loaded.modules())
        ours, theirs = loaded.state_dict(), saved.state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_both_files_are_written_or_none(folder, files, monkeypatch):
    monkeypatch.setattr(model, "pretrained_files", lambda *_: dict.fromkeys(files, b"new") | {"no/such/folder": b""})
    with pytest.raises(FileNotFoundError):
        DCAE().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named_with_its_folder(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(folder / name)):
        DCAE.from_pretrained(folder)


CONFIGS = [
    (b'{"channels": [8, 16, 32], "latent_channels": 4}', "encoder.down.1"),
    (b'{"channels": [8, 16], "latent_channels": 4, "up_kernel": 2}', "decoder.up.0.branch.0.2.weight"),
    (b'{"channels": 16}', "not iterable"),
    (b'{"colour": true}', "unexpected keyword argument 'colour'"),
    *((text, "must be a mapping") for text in (b"[16, 32]", b"null")),
    *((text, "Expecting") for text in (b"", b"{", b"PK\x03\x04")),
    (b"\xff\xfe\x00", "utf-8"),
]


@pytest.mark.parametrize("text, reason", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(text, reason, folder):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"the model in {folder} cannot be loaded: [\s\S]*{reason}"):
        DCAE.from_pretrained(folder)


@patient
@given(st.data(), st.booleans())
def test_truncated_weights_and_damaged_headers_are_refused(tmp_path_factory, files, data, truncated):
    folder, weights = tmp_path_factory.mktemp("damaged"), bytearray(files["model.safetensors"])
    header = 8 + int.from_bytes(weights[:8], "little")  # its length, then JSON
    if truncated:
        ends = st.sampled_from([0, 1, 7, 8, 9, len(weights) - 1]) | st.integers(0, len(weights) - 1)
        del weights[data.draw(ends) :]
    else:
        weights[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "config.json").write_bytes(files["config.json"])
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=f"the model in {folder} cannot be loaded: "):
        DCAE.from_pretrained(folder)


def test_loading_draws_no_random_numbers_and_gives_float32(float64_by_default):
    before = torch.get_rng_state()
    assert {p.dtype for p in DCAE.from_pretrained().parameters()} == {torch.float32}
    assert torch.equal(torch.get_rng_state(), before)
