"""Explorers of the latents and of the codec: each is one call in a notebook cell."""

from .codec import budget
from .explorers import LEVELS, brush, channels, damage, directions, figure, interpolation, quantisation, upload
