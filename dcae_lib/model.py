"""The deep convolutional autoencoder: encoder, decoder, and a folder to keep them in."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .blocks import DownBlock, MiddleStage, NormActConv, UpBlock
from .files import resource, write_whole

M = TypeVar("M", bound=nn.Module)


class Encoder(nn.Sequential):
    """Stem, down blocks, middle stage: pixels [B, 3, H, W] → latent [B, latent_channels, H/f, W/f]."""

    def __init__(self, channels, latent_channels, shortcut, groups, dropout, stage_dropout, zero_init):
        super().__init__()
        down = (DownBlock(i, o, shortcut, groups, dropout, zero_init) for i, o in pairwise(channels))
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = nn.Sequential(*down)
        self.stage = MiddleStage(channels[-1], latent_channels, groups, dropout, stage_dropout, zero_init)


class Decoder(nn.Sequential):
    """Middle stage, up blocks, head: latent [B, latent_channels, h, w] → pixels [B, 3, h·f, w·f]."""

    def __init__(self, channels, latent_channels, shortcut, groups, dropout, up_kernel, zero_init):
        super().__init__()
        up = (UpBlock(i, o, shortcut, up_kernel, groups, dropout, zero_init) for i, o in pairwise(channels[::-1]))
        self.stage = MiddleStage(latent_channels, channels[-1], groups, dropout, None, zero_init)
        self.up = nn.Sequential(*up)
        self.head = NormActConv(channels[0], 3, groups=groups)


class DCAE(nn.Module):
    """Deep convolutional autoencoder; without arguments, the model of this course (96,019 parameters).

    Pixels are floats in [-1, 1], [B, 3, H, W]; the latent is [B, latent_channels, H/f, W/f] with
    f = 4 ** (len(channels) - 1) = 4. H and W must be multiples of f.

    channels          widths from the stem inwards; every further width adds a down and an up block
    latent_channels   channels of the latent
    shortcut          in down and up blocks: "pool" (two steps of 2), "direct" (DC-AE, arXiv 2410.10733) or "none"
    groups            GroupNorm groups: gcd(groups, width) in each norm
    dropout           rate in every unit but the head
    stage_dropout     rate in the unit around the encoder's middle stage; None: as dropout
    up_kernel         2, 3 or 4: kernel of the transposed convolutions
    zero_init         residual branches start at zero: an untrained down or up block is its shortcut
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32),
        latent_channels: int = 16,
        shortcut: str = "pool",
        groups: int = 8,
        dropout: float = 0.0,
        stage_dropout: float | None = None,
        up_kernel: int = 4,
        zero_init: bool = True,
    ):
        channels = tuple(channels)
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = settings
        _check_config(**self.config)
        self.factor = 4 ** (len(channels) - 1)
        self.encoder = Encoder(channels, latent_channels, shortcut, groups, dropout, stage_dropout, zero_init)
        self.decoder = Decoder(channels, latent_channels, shortcut, groups, dropout, up_kernel, zero_init)

    def encode(self, x: Tensor) -> Tensor:
        """Pixels in [-1, 1], [B, 3, H, W] → latent [B, latent_channels, H/f, W/f]. ValueError for other inputs."""
        _check_floats(x, 3, "images")
        H, W, f = *x.shape[2:], self.factor
        if H % f or W % f or not H or not W:
            raise ValueError(f"height and width must be multiples of {f}, got {H}×{W}; pad or crop the images first")
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Latent [B, latent_channels, h, w] → pixels [B, 3, h·f, w·f], not clamped. ValueError for other inputs."""
        _check_floats(z, self.config["latent_channels"], "latents")
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct: pixels [B, 3, H, W] → pixels [B, 3, H, W]."""
        return self.decode(self.encode(x))

    def save_pretrained(self, folder: str | Path, **metadata: str) -> Path:
        """Write `pretrained_files` into a folder, made if needed, both or neither; return the folder."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_whole({folder / name: data for name, data in pretrained_files(self, **metadata).items()})
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "DCAE":
        """Load what `save_pretrained` wrote, in evaluation mode, on the CPU; without a folder, the recorded 40 epochs.

        Nothing is unpickled. FileNotFoundError for a missing file, ValueError for one that does not fit or is damaged.
        """
        return load_pretrained(cls, resource("recorded") if folder is None else folder)


def pretrained_files(model: nn.Module, **metadata: str) -> dict[str, bytes]:
    """Return the "model.safetensors", with metadata in its header, and "config.json" of a model that has a `config`."""
    stored = getattr(model, "stored", None)  # the type in which a model wants its weights stored, if not as they are
    weights = save({name: value.to(stored).contiguous() for name, value in model.state_dict().items()}, metadata)
    return {"model.safetensors": weights, "config.json": (json.dumps(model.config, indent=1) + "\n").encode()}


def load_pretrained(kind: type[M], folder: str | Path) -> M:
    """Load a model of this kind, in float32 and evaluation mode, from a folder with the files of `pretrained_files`."""
    folder = Path(folder).expanduser()
    try:
        with torch.device("meta"):  # draws no random numbers
            model = kind(**json.loads((folder / "config.json").read_text()))
        model.to_empty(device="cpu").float().load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the model in {folder} cannot be loaded: {error}") from error
    return model.eval()


def _check_floats(x: Tensor, channels: int, name: str) -> None:  # reads no values: that would wait for the GPU
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
        hint = "x[None] makes a batch of one, dcae_lib.to_model(x) scales uint8 pixels to [-1, 1]"
        raise ValueError(f"{name} must be floats [B, {channels}, H, W], got {x.dtype} {list(x.shape)}; {hint}")


def _check_config(channels, latent_channels, shortcut, **_) -> None:
    if len(channels) < 2 or min(channels) < 1 or latent_channels < 1:
        raise ValueError(f"channels must be two or more positive widths, got {channels} (latent {latent_channels})")
    for i, o in pairwise(channels):
        if (shortcut == "pool" and (4 * i % o or o % 4)) or (shortcut == "direct" and 16 * i % o):
            raise ValueError(f'shortcut="{shortcut}" cannot go from {i} to {o} channels; doubling them always works')
