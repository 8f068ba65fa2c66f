"""Images to bytes and back, with a DCAE as analysis and synthesis transform."""

from .bitstream import CorruptStream
from .codec import Codec

__all__ = ["Codec", "CorruptStream"]
