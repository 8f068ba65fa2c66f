"""Training for rate and distortion, on the loop that trains the DCAE."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data import ImageSet, Splits, eval_batch_size, to_model, to_uint8
from ..files import resource
from ..loop import State, Task, evaluating
from ..metrics import MAX_PSNR, psnr
from ..model import DCAE
from ..runs.record import save_run
from ..training import Call, Out, run_task
from .context import QUALITIES
from .model import RateModel

PRESET: dict = dict(batch_size=32, lr=1e-2, clip=2.0, warmup=0.01, optimizer_args=dict(weight_decay=0.0), epochs=25)
SCORED = (0, 20, 40, 60, 80, 100)  # qualities evaluated after every epoch
EXAMPLE = """from dcae_lib import Codec

codec = Codec.from_pretrained("this folder")
data = codec.compress(image, quality=40)  # a uint8 tensor [3, H, W], an array [H, W, 3] or a Pillow image
codec.decompress(data)"""
NOTES = """The weights include the coder's
integer tables. Files decode only with the weights that wrote them. On photographs AVIF and WebP do better."""


def trade(quality: Tensor) -> Tensor:
    """Return the weight of an MSE of 1, on [0, 1], against one bit per pixel: 40 at quality 0, 9,000 at 100."""
    return 40 * 225 ** (quality / 100)


def rate_distortion(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss, bits per pixel + trade · MSE, at a random quality for each image.

    Both terms grow with the quality, so each image is divided by the square root of its trade; otherwise high
    qualities dominate and low rates learn little.
    """
    quality = torch.randint(len(QUALITIES), (len(x),), device=x.device).float()
    y, cost = model(x, quality)
    bpp = cost.sum((1, 2, 3)) / x[0, 0].numel()
    mse = ((y - x) / 2).square().mean((1, 2, 3))  # on [0, 1]
    return ((bpp + trade(quality) * mse) / (trade(quality) / trade(torch.tensor(50.0))).sqrt()).mean()


@torch.no_grad()
def estimate(model: RateModel, images: ImageSet) -> dict[str, float]:
    """Return means over images at six qualities: {"bpp_<q>": bits per pixel by the model, "psnr_<q>": dB of uint8}."""
    scores: dict[str, float] = {}
    with evaluating(model) as weight:
        for q in SCORED:
            rows = []
            for part in images.images.split(eval_batch_size(images)):
                x = to_model(part.to(weight.device))
                y, cost = model(x, weight.new_full((len(x),), q))
                decibel = psnr(to_model(to_uint8(y)), x).clamp(max=MAX_PSNR)
                rows.append(torch.stack([cost.sum((1, 2, 3)) / x[0, 0].numel(), decibel]))
            scores[f"bpp_{q}"], scores[f"psnr_{q}"] = torch.cat(rows, 1).mean(1).tolist()
    return scores


def train_codec(
    config: TrainConfig, out: Out = None, splits: Splits | None = None, after_epoch: Call = None
) -> State[RateModel]:
    """Train a RateModel that starts from the recorded DCAE; see `train` for `out`, resuming and errors.

    config.model holds the arguments of ContextModel. A history entry has train_loss and the scores of `estimate`.
    """

    def build() -> RateModel:
        start = DCAE.from_pretrained()
        model = RateModel(context=config.model, **start.config).float()
        model.autoencoder.load_state_dict(start.state_dict())
        return model

    task = Task("loss", build, rate_distortion, estimate)
    return run_task(task, _save, config, out, splits, after_epoch)


def _save(state: State[RateModel], splits: Splits, out: Path) -> None:
    """Write the model, its card and `history.json`, which also names the weights that training started from."""
    config, scores = state.config, state.history[-1]
    figures = ", ".join(f"{scores[f'psnr_{q}']:.2f} dB at {scores[f'bpp_{q}']:.3f}" for q in SCORED)
    summary = f"""Trained on {config.dataset} for {config.epochs} epochs by `dcae train-codec`, from the recorded DCAE.
PSNR at the model's own bits per pixel, means over its test images, for qualities {SCORED}: {figures}"""
    start = hashlib.sha256((resource("recorded") / "model.safetensors").read_bytes()).hexdigest()
    save_run(state, splits, out, "The model of the DCAE codec", summary, EXAMPLE, NOTES, start=start)
