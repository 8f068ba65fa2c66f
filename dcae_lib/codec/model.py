"""Training for rate and distortion: the DCAE as analysis and synthesis of a codec, `dcae train-codec --help`."""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runs.checkpoint import refuse_another
from ..data import ImageSet, Splits, eval_batch_size, to_model, to_uint8
from ..scale.parallel import world
from .context import QUALITIES, ContextModel, between_anchors, bits
from ..metrics import psnr
from ..model import DCAE, load_pretrained
from ..files import resource
from ..training import Run, Task, TrainConfig, fit, images_of, save_record, status

SCORED = (0, 20, 40, 60, 80, 100)                           # qualities that are evaluated after every epoch


class RateModel(nn.Module):
    """A DCAE whose latents are scaled, rounded to integers and priced by a context model; one for all qualities.

    A quality is a number from 0 to 100. It sets a gain for each channel before rounding and another one after it,
    both exponentials of lines between anchors, and the biases of the context model.
    Cui et al. 2021, arXiv 2003.02012 (gains).

    context   arguments of ContextModel
    **model   arguments of DCAE
    """

    def __init__(self, context: dict | None = None, **model):
        super().__init__()
        self.autoencoder = DCAE(**model)
        channels = self.autoencoder.config["latent_channels"]
        self.context = ContextModel(channels, **(context or {}))
        anchors = len(self.context.quality)
        # From two fifths of what the L1-trained network gives to twenty times as much: where training ends is near.
        start = torch.linspace(-0.9, 3.0, anchors)[:, None].repeat(1, channels)
        self.log_gain = nn.Parameter(start)
        self.log_inverse = nn.Parameter(-start)
        self.config = dict(context=context or {}, **self.autoencoder.config)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "RateModel":
        """Load what `save_run` wrote, in evaluation mode, on the CPU; without a folder, the shipped weights.

        Nothing is unpickled. Raises FileNotFoundError for a missing file and ValueError for one that does not fit
        or is damaged.
        """
        return load_pretrained(cls, resource("codec_weights") if folder is None else Path(folder))

    def analyse(self, x: Tensor, quality: Tensor) -> Tensor:
        """Pixels in [-1, 1], [N, 3, H, W], and a quality each, floats [N] → latents to be rounded, [N, C, h, w]."""
        return self.autoencoder.encode(x) * self._gain(self.log_gain, quality)

    def synthesise(self, y: Tensor, quality: Tensor) -> Tensor:
        """Rounded latents [N, C, h, w] and a quality each → pixels [N, 3, H, W], not clamped."""
        return self.autoencoder.decode(y * self._gain(self.log_inverse, quality))

    def forward(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels after the round trip, [N, 3, H, W], and what each latent costs in bits, [N, C, h, w].

        Rounding has no gradient. The picture and the context see rounded latents, and pass gradients straight through;
        the price is that of latents with noise as wide as a rounding step, in training, and of rounded ones else.
        Ballé, Laparra and Simoncelli 2017, arXiv 1611.01704 (noise); Minnen and Singh 2020, arXiv 2007.08739 (both).
        """
        y = self.analyse(x, quality)
        rounded = y + (y.round() - y).detach()
        priced = y + torch.rand_like(y) - 0.5 if self.training else rounded
        return self.synthesise(rounded, quality), bits(priced, *self.context(rounded, quality))

    def _gain(self, table: Tensor, quality: Tensor) -> Tensor:
        return between_anchors(table, quality).exp()[:, :, None, None]


def trade(quality: Tensor) -> Tensor:
    """What an MSE of 1, on [0, 1], weighs against a bit per pixel: from 40 at quality 0 to 9,000 at 100."""
    return 40 * 225 ** (quality / 100)


def rate_distortion(model: nn.Module, x: Tensor) -> Tensor:
    """The loss: bits per pixel + trade · MSE, a random quality for each image, averaged so that each counts alike.

    Both terms grow with the quality, so an image weighs less at a higher one; without that, low rates learn little.
    """
    quality = torch.randint(len(QUALITIES), (len(x),), device=x.device).float()
    y, cost = model(x, quality)
    bpp = cost.sum((1, 2, 3)) / x[0, 0].numel()
    mse = ((y - x) / 2).square().mean((1, 2, 3))            # on [0, 1]
    return ((bpp + trade(quality) * mse) / (trade(quality) / trade(torch.tensor(50.0))).sqrt()).mean()


@torch.no_grad()
def estimate(model: RateModel, images: ImageSet, batch_size: int | None = None) -> dict[str, float]:
    """Means over images at six qualities: {"bpp_<q>": bits per pixel by the context model, "psnr_<q>": dB, of bytes}."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    found: dict[str, float] = {}
    for q in SCORED:
        rates, distances = [], []
        for part in images.images.split(batch_size or eval_batch_size(images)):
            x = to_model(part.to(device))
            y, cost = model(x, torch.full((len(x),), float(q), device=device))
            rates.append(cost.sum((1, 2, 3)) / x[0, 0].numel())
            distances.append(psnr(to_model(to_uint8(y)), x))
        found |= {f"bpp_{q}": torch.cat(rates).mean().item(), f"psnr_{q}": torch.cat(distances).mean().item()}
    model.train(was_training)
    return found


PRESET: dict = dict(batch_size=32, lr=1e-2, clip=2.0, warmup=0.01, optimizer_args=dict(weight_decay=0.0), epochs=25)


def train_rate(
    config: TrainConfig, out: str | Path | None = None, splits: Splits | None = None,
    after_epoch: Callable[[Run[RateModel]], None] | None = None,
) -> Run[RateModel]:
    """Train a RateModel that begins as the recorded DCAE; `train` says what holds for `out`, kills and errors.

    config.model holds the arguments of ContextModel. A history entry has train_loss and what `estimate` finds.
    """

    def build() -> RateModel:
        start = DCAE.from_pretrained()
        model = RateModel(context=config.model, **start.config)
        model.autoencoder.load_state_dict(start.state_dict())
        return model

    task = Task("loss", build, rate_distortion, estimate, save_run)
    with world(config.device) as processes:
        splits = splits or processes.machine_first(lambda: images_of(config))
        return fit(task, config, out, splits, after_epoch, processes=processes)


def save_run(run: Run[RateModel], splits: Splits, out: Path) -> None:
    """Write the model, with its card, and `history.json`, which also names the weights that it began with."""
    start = hashlib.sha256((resource("recorded") / "model.safetensors").read_bytes()).hexdigest()
    save_record(run, splits, out, card, start=start)


def card(run: Run[RateModel], parameters: int) -> str:
    """The model card: what the weights are, how to use them, how good they are, what not to expect."""
    last = run.history[-1]
    figures = ", ".join(f"{last[f'psnr_{q}']:.2f} dB at {last[f'bpp_{q}']:.3f}" for q in SCORED)
    return f"""# The model of the DCAE codec, {parameters:,} parameters

Trained on {run.config.dataset} for {run.config.epochs} epochs by `dcae train-codec`, from the weights of the recorded run of
`dcae_lib.train`. On its test images, at qualities {', '.join(map(str, SCORED))}: PSNR {figures} bits per pixel (means over
images; bits by the model's own probabilities, to which a file of one image adds 8 bytes of header and checksum, and less than another).

```python
from dcae_lib import Codec

codec = Codec.from_pretrained("this folder")
data = codec.compress(image, quality=40)        # a uint8 tensor [3, H, W], an array [H, W, 3] or a Pillow image
codec.decompress(data)
```

`model.safetensors` holds weights and the integer tables of the entropy coder, and in its header the SHA-256 of
`history.json`; `config.json` the arguments of `RateModel(...)`; `history.json` every epoch, the settings, the data's
hashes, versions, code revision and hardware. `dcae verify FOLDER` evaluates the weights again and compares.
Files are read by these very weights only. Trained on small images: on photographs expect less than of AVIF or WebP.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="dcae train-codec",
        description="Train the codec's model. The same command after a kill or Ctrl-C goes on where it stopped.",
    )
    parser.add_argument("--out", required=True, help="folder for the model, history.json and, until the end, checkpoints")
    parser.add_argument("--dataset", default="cifar10", help='"sample", "cifar10" or a folder of images of one size')
    parser.add_argument("--epochs", type=int, default=PRESET["epochs"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cuda, mps or cpu; the best there is if not named")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")

    def summary(run: Run[RateModel]) -> str:
        last = run.history[-1]
        return f"{out}: " + ", ".join(f"{last[f'psnr_{q}']:.2f} dB at {last[f'bpp_{q}']:.3f} bpp" for q in SCORED)

    def do() -> Run[RateModel]:
        with world(options["device"]) as processes:
            config = processes.machine_first(lambda: TrainConfig(**PRESET | options))
            processes.first_does(lambda: refuse_another(config, out))
            return train_rate(config, out)

    return status(do, summary)


if __name__ == "__main__":
    sys.exit(main())
