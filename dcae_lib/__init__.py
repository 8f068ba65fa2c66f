"""DCAE: a deep convolutional autoencoder, and the notebooks that teach it."""

import warnings

from .codec import Codec
from .data import ImageSet, Splits, load_images, to_model, to_uint8
from .model import DCAE
from .shuffle import average_channels, channel_to_space, duplicate_channels, space_to_channel
from .soap import SOAP
from .train import TrainConfig, evaluate, train

# `python -m dcae_lib.train` finds the module imported already, since `train` is a public name here: that is meant.
warnings.filterwarnings("ignore", message="'dcae_lib", category=RuntimeWarning, module="runpy")

__all__ = [
    "Codec",
    "DCAE",
    "ImageSet",
    "SOAP",
    "Splits",
    "TrainConfig",
    "average_channels",
    "channel_to_space",
    "duplicate_channels",
    "evaluate",
    "load_images",
    "space_to_channel",
    "to_model",
    "to_uint8",
    "train",
]
