"""The default model is the one of the design, stage by stage; it checks its inputs, and keeps in a folder."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcae_lib import DCAE, load_images, to_model

patient = settings(deadline=None, max_examples=40)          # a busy core is no failure


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def pictures():
    """Floats [32, 3, 32, 32] in [-1, 1]."""
    return to_model(load_images("sample").test.images[:32])


# ---- architecture


def test_the_default_model_has_96019_parameters():
    model = DCAE()
    assert parameters(model) == 96_019
    assert parameters(model.encoder) == 45_312
    assert parameters(DCAE(up_kernel=2)) == 86_803


@pytest.mark.parametrize("H, W", [(32, 32), (64, 64), (96, 160), (4, 8)])
def test_the_latent_is_a_quarter_of_the_side(H, W):
    model, x = DCAE(), torch.zeros(2, 3, H, W)
    z = model.encode(x)
    assert z.shape == (2, 16, H // 4, W // 4)
    assert model.decode(z).shape == model(x).shape == x.shape


@pytest.mark.parametrize("shortcut", ["pool", "direct", "none"])
@pytest.mark.parametrize("H, W", [(32, 32), (64, 64), (96, 160)])
def test_a_third_width_makes_the_factor_16(H, W, shortcut):
    model, x = DCAE(channels=(16, 32, 64), latent_channels=24, shortcut=shortcut), torch.zeros(1, 3, H, W)
    z = model.encode(x)
    assert z.shape == (1, 24, H // 16, W // 16)
    assert model.decode(z).shape == x.shape


STAGES = [                                                  # of the design, section 3, in the order in which they run
    ("encoder.stem", (16, 32, 32)),
    ("encoder.down.0.branch.0", (32, 16, 16)),
    ("encoder.down.0.branch.1", (32, 8, 8)),
    ("encoder.down.0", (32, 8, 8)),
    ("encoder.stage.shortcut", (16, 8, 8)),
    ("encoder.stage.branch.0", (32, 8, 8)),
    ("encoder.stage.branch.1", (16, 8, 8)),
    ("encoder.stage", (16, 8, 8)),
    ("decoder.stage.shortcut", (32, 8, 8)),
    ("decoder.stage.branch.0", (32, 8, 8)),
    ("decoder.stage.branch.1", (32, 8, 8)),
    ("decoder.stage", (32, 8, 8)),
    ("decoder.up.0.branch.0", (16, 16, 16)),
    ("decoder.up.0.branch.1", (16, 32, 32)),
    ("decoder.up.0", (16, 32, 32)),
    ("decoder.head", (3, 32, 32)),
]


def test_the_stages_have_the_shapes_of_the_design():
    model, seen = DCAE(), []
    for name, _ in STAGES:
        note = lambda _, __, y, name=name: seen.append((name, tuple(y.shape[1:])))      # noqa: E731
        model.get_submodule(name).register_forward_hook(note)
    model(torch.zeros(2, 3, 32, 32))
    assert seen == STAGES


CONVOLUTIONS = """
Conv2d 3→16 kernel 3 stride 1            stem
Conv2d 16→32 kernel 3 stride 2           down block
Conv2d 32→32 kernel 3 stride 2
Conv2d 32→16 kernel 3 stride 1           around the encoder's stage
Conv2d 32→32 kernel 3 stride 1           residual block 32→32
Conv2d 32→32 kernel 3 stride 1
Conv2d 32→16 kernel 1 stride 1           residual block 32→16, its shortcut first
Conv2d 32→16 kernel 3 stride 1
Conv2d 16→16 kernel 3 stride 1
Conv2d 16→32 kernel 3 stride 1           around the decoder's stage
Conv2d 16→32 kernel 1 stride 1           residual block 16→32, its shortcut first
Conv2d 16→32 kernel 3 stride 1
Conv2d 32→32 kernel 3 stride 1
Conv2d 32→32 kernel 3 stride 1           residual block 32→32
Conv2d 32→32 kernel 3 stride 1
ConvTranspose2d 32→16 kernel 4 stride 2  up block
ConvTranspose2d 16→16 kernel 4 stride 2
Conv2d 16→3 kernel 3 stride 1            head
"""


def test_the_convolutions_run_in_the_order_of_the_design():
    def note(conv, *_):
        widths, kernel, stride = f"{conv.in_channels}→{conv.out_channels}", conv.kernel_size[0], conv.stride[0]
        seen.append(f"{type(conv).__name__} {widths} kernel {kernel} stride {stride}")

    model, seen = DCAE(), []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(note)
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [line.split("  ")[0] for line in CONVOLUTIONS.strip().splitlines()]


def test_the_shortcuts_are_the_pools_of_the_design_or_the_direct_ones_or_none():
    names = [
        getattr(block.shortcut, "__name__", None)
        for shortcut in ("pool", "direct", "none")
        for block in (DCAE(shortcut=shortcut).encoder.down[0], DCAE(shortcut=shortcut).decoder.up[0])
    ]
    assert names == ["pool_down", "pool_up", "direct_down", "direct_up", None, None]


def test_there_are_eight_groups_in_every_norm_and_no_dropout():
    modules = list(DCAE().modules())
    assert {m.num_groups for m in modules if isinstance(m, nn.GroupNorm)} == {8}
    assert {m.p for m in modules if isinstance(m, nn.Dropout)} == {0.0}


def test_dropout_is_everywhere_but_in_the_head_and_the_encoders_stage_shortcut_has_its_own():
    rates = {n: m.p for n, m in DCAE(dropout=0.1, stage_dropout=0.2).named_modules() if isinstance(m, nn.Dropout)}
    assert rates.pop("decoder.head.3") == 0.0
    assert rates.pop("encoder.stage.shortcut.3") == 0.2
    assert set(rates.values()) == {0.1}
    assert DCAE(dropout=0.1).encoder.stage.shortcut[3].p == 0.1


def test_up_kernel_is_the_kernel_of_every_transposed_convolution():
    for kernel in (2, 3, 4):
        model = DCAE(channels=(16, 32, 64), up_kernel=kernel)
        kernels = [m.kernel_size[0] for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
        assert kernels == [kernel] * 4
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


# ---- gradients


def without_gradient(model, x):
    """Names of the parameters whose gradient is missing or all zero after one backward."""
    model.zero_grad()
    F.l1_loss(model(x), x).backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


@pytest.mark.parametrize("shortcut", ["pool", "direct", "none"])
def test_gradients_reach_every_parameter_without_zero_init(shortcut, pictures):
    assert without_gradient(DCAE(shortcut=shortcut, zero_init=False), pictures[:4]) == set()


@pytest.mark.parametrize("shortcut, branches", [
    ("pool", {"encoder.down.0", "decoder.up.0"}),
    ("direct", {"encoder.down.0", "decoder.up.0"}),
    ("none", set()),                                        # these branches are all that there is: none starts at zero
])
def test_at_the_first_step_only_what_stands_before_a_zero_convolution_has_no_gradient(shortcut, branches, pictures):
    # A branch ends in y = W·h + b with W = 0. ∂L/∂W = ∂L/∂y·hᵀ and ∂L/∂b = ∂L/∂y are not zero; ∂L/∂h = Wᵀ·∂L/∂y is,
    # and with it the gradient of the first unit of the branch and of the norm before W. The shortcut carries the rest.
    branches = branches | {f"{half}.stage.branch.{k}" for half in ("encoder", "decoder") for k in (0, 1)}
    before_zero = {
        f"{branch}.branch.{layer}.{kind}"
        for branch in branches
        for layer in ("0.0", "0.2", "1.0")                  # norm and convolution of the first unit, norm of the second
        for kind in ("weight", "bias")
    }
    torch.manual_seed(0)
    assert without_gradient(DCAE(shortcut=shortcut), pictures) == before_zero


def test_after_three_steps_every_parameter_has_a_gradient(pictures):
    torch.manual_seed(0)
    model = DCAE()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(3):
        without_gradient(model, pictures)
        optimizer.step()
    assert without_gradient(model, pictures) == set()


# ---- memory format and precision


@pytest.fixture(scope="module", params=[True, False], ids=["zero init", "no zero init"])
def model(request):
    torch.manual_seed(0)
    return DCAE(zero_init=request.param).eval()


@torch.no_grad()
def test_channels_last_gives_the_same_picture(model, pictures):
    y = model(pictures)
    last = model(pictures.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, rtol=0, atol=5e-5)  # measured on four seeds: 2e-6 to 5e-6 at most


@torch.no_grad()
def test_bfloat16_autocast_gives_nearly_the_same_picture(model, pictures):
    y = model(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pictures)
    assert half.dtype == torch.bfloat16
    error = (half - y).abs()                                # measured on four seeds: mean 0.002 to 0.004, at most 0.05
    assert error.mean() < 0.01 and error.max() < 0.2


# ---- dropout and modes


@pytest.mark.parametrize("rates", [dict(dropout=0.5), dict(stage_dropout=0.5)])
def test_dropout_is_active_in_train_mode_only(rates, pictures):
    x = pictures[:2]
    model = DCAE(**rates, zero_init=False)
    plain = DCAE(zero_init=False).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert torch.equal(model(x), plain(x))


# ---- inputs


REFUSED_IMAGES = [
    (torch.empty(2, 3, 30, 32), r"multiples of 4, got 30×32; pad or crop the images first"),
    (torch.empty(2, 3, 32, 33), r"multiples of 4, got 32×33; pad or crop"),
    (torch.empty(2, 3, 0, 32), r"multiples of 4, got 0×32"),
    (torch.empty(2, 1, 32, 32), r"images must have 3 channels, got 1 in shape \[2, 1, 32, 32\]"),
    (torch.empty(2, 32, 32, 3), r"images must have 3 channels, got 32"),
    (torch.empty(3, 32, 32), r"images must be a batch \[B, 3, H, W\], got shape \[3, 32, 32\]; for one, x\[None\]"),
    (torch.empty(2, 3, 1, 32, 32), r"images must be a batch \[B, 3, H, W\], got shape \[2, 3, 1, 32, 32\]"),
    (torch.empty(2, 3, 32, 32, dtype=torch.uint8), r"images must be floats, got torch.uint8; .*to_model\(x\) scales"),
    (torch.empty(2, 3, 32, 32, dtype=torch.int64), r"images must be floats, got torch.int64"),
]
REFUSED_LATENTS = [
    (torch.empty(2, 16, 8, 8, dtype=torch.int64), r"latents must be floats, got torch.int64"),
    (torch.empty(2, 32, 8, 8), r"latents must have 16 channels, got 32 in shape \[2, 32, 8, 8\]"),
    (torch.empty(16, 8, 8), r"latents must be a batch \[B, 16, H, W\], got shape \[16, 8, 8\]; for one, x\[None\]"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("x, message", REFUSED_IMAGES)
def test_an_image_that_does_not_fit_is_refused_by_its_shape_and_dtype_alone(x, message, device):
    model = DCAE().to(device)                               # on "meta" there are no values that could be read
    for call in (model, model.encode):
        with pytest.raises(ValueError, match=message):
            call(x.to(device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("z, message", REFUSED_LATENTS)
def test_a_latent_that_does_not_fit_is_refused_by_its_shape_and_dtype_alone(z, message, device):
    with pytest.raises(ValueError, match=message):
        DCAE().to(device).decode(z.to(device))


def test_a_model_without_values_runs_so_that_checks_read_none():
    model, x = DCAE().to("meta"), torch.empty(2, 3, 32, 64, device="meta")
    assert model.encode(x).shape == (2, 16, 8, 16)
    assert model(x).shape == x.shape


def test_a_side_must_be_a_multiple_of_the_factor_of_the_model():
    with pytest.raises(ValueError, match="multiples of 16, got 40×32"):
        DCAE(channels=(16, 32, 64))(torch.empty(1, 3, 40, 32))


@pytest.mark.parametrize("arguments, message", [
    (dict(channels=(16,)), r"two or more positive widths, got \(16,\)"),
    (dict(channels=()), r"two or more positive widths"),
    (dict(channels=(16, 0)), r"two or more positive widths"),
    (dict(latent_channels=0), r"latent 0"),
    (dict(shortcut="pooling"), r"shortcut must be one of pool, direct, none, got 'pooling'"),
    (dict(groups=0), r"groups must be 1 or more, got 0"),
    (dict(up_kernel=5), r"up_kernel must be 2, 3 or 4, got 5"),
    (dict(dropout=1.0), r"dropout rate must be in \[0, 1\), got 1.0"),
    (dict(dropout=-0.1), r"dropout rate must be in \[0, 1\)"),
    (dict(dropout=float("nan")), r"dropout rate must be in \[0, 1\), got nan"),
    (dict(stage_dropout=1.5), r"dropout rate must be in \[0, 1\), got 1.5"),
    (dict(channels=(16, 24)), r'shortcut="pool" cannot go from 16 to 24 channels; doubling them always works'),
    (dict(channels=(3, 6)), r'shortcut="pool" cannot go from 3 to 6'),
    (dict(channels=(16, 32, 48)), r"cannot go from 32 to 48"),
    (dict(channels=(16, 24), shortcut="direct"), r'shortcut="direct" cannot go from 16 to 24'),
])
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCAE(**arguments)


@patient
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["pool", "direct", "none"]))
def test_widths_that_are_admitted_work_and_the_others_are_refused(i, o, shortcut):
    try:
        model = DCAE(channels=(i, o), latent_channels=4, shortcut=shortcut)
    except ValueError:
        # The way up takes the same widths as the way down, so these two rules are all.
        assert (4 * i % o or o % 4) if shortcut == "pool" else 16 * i % o
        assert shortcut != "none"
        return
    x = torch.zeros(2, 3, 8, 8)
    assert model(x).shape == x.shape


# ---- a folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a small model, and the bytes of its weights."""
    torch.manual_seed(0)
    folder = DCAE(channels=(8, 16), latent_channels=4).save_pretrained(tmp_path_factory.mktemp("saved"))
    return folder, (folder / "model.safetensors").read_bytes()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return DCAE().save_pretrained(tmp_path / "model")


def test_a_saved_model_comes_back_bit_for_bit_in_evaluation_mode(tmp_path, pictures):
    arguments = dict(
        channels=(8, 16, 32), latent_channels=5, shortcut="direct", groups=4, dropout=0.01, stage_dropout=0.05,
        up_kernel=3, zero_init=False,
    )
    model = DCAE(**arguments)
    folder = model.save_pretrained(tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder"
    for place in (folder, str(folder)):
        loaded = DCAE.from_pretrained(place)
        assert loaded.config == model.config == arguments
        assert not any(module.training for module in loaded.modules())
        ours, theirs = loaded.state_dict(), model.state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert torch.equal(loaded(pictures), model.eval()(pictures))


def test_a_folder_holds_json_that_reads_as_the_arguments_and_weights_that_are_no_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config == DCAE().config | {"channels": [16, 32]}
    header = (folder / "model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["encoder.stem.bias"]["shape"] == [16]


def test_a_model_in_channels_last_is_saved_like_any_other(folder, tmp_path):
    model = DCAE.from_pretrained(folder).to(memory_format=torch.channels_last)
    again = DCAE.from_pretrained(model.save_pretrained(tmp_path / "again"))
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters()))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no config.json; save_pretrained"):
        DCAE.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_there_is_named_with_its_folder(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        DCAE.from_pretrained(folder)
    assert f"{folder} holds no {name}" in str(caught.value)


def refused(folder):
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        DCAE.from_pretrained(folder)
    assert f"the model in {folder} cannot be loaded: " in str(caught.value)
    return str(caught.value)


def test_weights_of_another_config_are_refused(folder, tmp_path):
    other = DCAE(up_kernel=2).save_pretrained(tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert "decoder.up.0.branch.0.2.weight" in refused(folder)


def test_weights_of_another_depth_are_refused(folder, tmp_path):
    other = DCAE(channels=(16, 32, 64)).save_pretrained(tmp_path / "other")
    (folder / "config.json").write_text((other / "config.json").read_text())
    assert "encoder.down.1" in refused(folder)


@pytest.mark.parametrize("text, reason", [
    ("", "Expecting value"),
    ("{", "Expecting property name"),
    ("PK\x03\x04", "Expecting value"),
    ("[16, 32]", "must be a mapping"),
    ("null", "must be a mapping"),
    ('{"colour": true}', "unexpected keyword argument 'colour'"),
    ('{"channels": 16}', "not iterable"),
    ('{"channels": [16, "32"]}', "'<' not supported"),
    ('{"groups": null}', "'<' not supported"),
    ('{"up_kernel": 7}', "up_kernel must be 2, 3 or 4"),
])
def test_a_config_that_is_not_one_is_refused(text, reason, folder):
    (folder / "config.json").write_text(text)
    assert reason in refused(folder)


def test_a_config_that_is_not_text_is_refused(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "utf-8" in refused(folder)


@patient
@given(st.data())
def test_truncated_weights_are_refused(saved, data):
    folder, weights = saved
    end = data.draw(st.sampled_from([0, 1, 7, 8, 9, len(weights) - 1]) | st.integers(0, len(weights) - 1))
    (folder / "model.safetensors").write_bytes(weights[:end])
    refused(folder)


@patient
@given(st.data())
def test_weights_with_a_flipped_bit_in_the_header_are_refused(saved, data):
    folder, weights = saved
    header = 8 + int.from_bytes(weights[:8], "little")      # its length, then JSON
    damaged = bytearray(weights)
    damaged[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "model.safetensors").write_bytes(damaged)
    refused(folder)


def test_a_pickle_in_place_of_the_weights_is_refused_and_not_opened(folder):
    class Trap:
        def __reduce__(self):
            return Path.touch, (folder / "opened",)

    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    refused(folder)
    assert not (folder / "opened").exists()
