"""Explorers of the latents and of the codec: each is one call in a notebook cell."""

from .codec import budget, curves
from .explorers import LEVELS, brush, channels, classes, damage, directions, figure, interpolation, quantisation, upload
