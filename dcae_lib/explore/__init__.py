"""Explorers of the latents and of the codec, in a notebook."""

from .explorers import LEVELS, brush, channels, classes, damage, directions, figure, interpolation, quantisation, upload
