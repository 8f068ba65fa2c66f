"""DCAE: a deep convolutional autoencoder, and the notebooks that teach it. Names load their modules on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .config import TrainConfig
    from .data import ImageSet, Splits, load_images, to_model, to_uint8
    from .loop import evaluate
    from .model import DCAE
    from .rearrange import average_channels, channel_to_space, duplicate_channels, space_to_channel
    from .soap import SOAP
    from .training import train

NAMES = {
    "codec": "Codec",
    "config": "TrainConfig",
    "data": "ImageSet Splits load_images to_model to_uint8",
    "loop": "evaluate",
    "model": "DCAE",
    "rearrange": "average_channels channel_to_space duplicate_channels space_to_channel",
    "soap": "SOAP",
    "training": "train",
}
__all__ = sorted(name for names in NAMES.values() for name in names.split())


def __getattr__(name: str):
    for module, names in NAMES.items():
        if name in names.split():
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
