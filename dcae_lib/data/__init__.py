"""Images as uint8 tensors: the embedded sample, CIFAR-10, or a folder of pictures."""

from .load import load_images
from .pictures import MAX_PIXELS, image_files, open_picture, pixel_sizes, read_picture
from .sets import CLASSES, DataError, Images, ImageSet, Splits, batches, eval_batch_size, image_set, to_model, to_uint8

__all__ = [
    "CLASSES",
    "DataError",
    "ImageSet",
    "Images",
    "MAX_PIXELS",
    "Splits",
    "batches",
    "eval_batch_size",
    "image_files",
    "image_set",
    "load_images",
    "open_picture",
    "pixel_sizes",
    "read_picture",
    "to_model",
    "to_uint8",
]
