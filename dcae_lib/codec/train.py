"""Training for rate and distortion, on the loop that trains the DCAE."""

import hashlib

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data import ImageSet, Splits, eval_batch_size, load_images, to_model, to_uint8
from ..files import PACKAGE, resource
from ..loop import State, Task
from ..metrics import MAX_PSNR, psnr
from ..model import DCAE
from ..training import Call, Out, images_of, run_task
from .context import QUALITIES
from .model import RateModel, trade
from .photos import photographs

START = resource("runs") / "narrow"  # forty epochs with 16 and 32 channels, which serve the codec better than 36 and 24
STATISTICS = 256  # images on which the norms of the DCAE are measured
PRESET: dict = dict(batch_size=32, lr=5e-3, clip=2.0, warmup=0.01, optimizer_args=dict(weight_decay=0.0), epochs=20)
SCORED = (20, 50, 80)  # qualities evaluated after every epoch


def rate_distortion(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss, bits per pixel + trade · MSE, at a random quality for each image.

    Both terms grow with the quality, so each image is divided by the square root of its trade; otherwise high
    qualities dominate and low rates learn little.
    """
    quality = torch.randint(len(QUALITIES), (len(x),), device=x.device).float()
    y, cost = model(x, quality)
    bpp = cost / x[0, 0].numel()
    mse = ((y - x) / 2).square().mean((1, 2, 3))  # on [0, 1]
    return ((bpp + trade(quality) * mse) / (trade(quality) / trade(torch.tensor(50.0))).sqrt()).mean()


@torch.no_grad()
def estimate(model: RateModel, images: ImageSet) -> dict[str, float]:
    """Return means over images at each of SCORED: {"bpp_<q>": bits per pixel by the model, "psnr_<q>": dB of uint8}."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    scores: dict[str, float] = {}
    for q in SCORED:
        rows = []
        for part in images.images.split(eval_batch_size(images)):
            x = to_model(part.to(device))
            y, cost = model(x, x.new_full((len(x),), q))
            decibel = psnr(to_model(to_uint8(y)), x).clamp(max=MAX_PSNR)
            rows.append(torch.stack([cost / x[0, 0].numel(), decibel]))
        scores[f"bpp_{q}"], scores[f"psnr_{q}"] = torch.cat(rows, 1).mean(1).tolist()
    model.train(training)
    return scores


def codec_images(config: TrainConfig) -> Splits:
    """Return the images that a config names, with `crop` crops of the photographs in a folder."""
    return photographs(config.dataset) if config.crop else images_of(config)


def train_codec(
    config: TrainConfig, out: Out = None, splits: Splits | None = None, after_epoch: Call = None
) -> State[RateModel]:
    """Train a RateModel that starts from the run "narrow", a DCAE; see `train` for `out`, resuming and errors.

    config.model holds `hidden` of the RateModel. A history entry has train_loss and the scores of `estimate`.
    """

    def build() -> RateModel:
        start = DCAE.from_pretrained(START)
        model = RateModel(**config.model, **start.config).float()
        model.start_from(start, to_model(load_images("sample").train.images[:STATISTICS]))
        return model

    task, card = Task("loss", build, rate_distortion, estimate), PACKAGE / "codec" / "card.md"
    start = hashlib.sha256((START / "model.safetensors").read_bytes()).hexdigest()
    return run_task(task, card, config, out, splits or codec_images(config), after_epoch, start=start)
