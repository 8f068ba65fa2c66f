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

_MODULE_OF = {
    "Codec": "codec",
    "DCAE": "model",
    "ImageSet": "data",
    "SOAP": "soap",
    "Splits": "data",
    "TrainConfig": "config",
    "average_channels": "rearrange",
    "channel_to_space": "rearrange",
    "duplicate_channels": "rearrange",
    "evaluate": "loop",
    "load_images": "data",
    "space_to_channel": "rearrange",
    "to_model": "data",
    "to_uint8": "data",
    "train": "training",
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
