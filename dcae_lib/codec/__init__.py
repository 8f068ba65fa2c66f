"""Images to bytes and back, with a DCAE as analysis and synthesis."""

from .bitstream import CorruptStream, UnknownVersion, WrongModel
from .codec import Codec
