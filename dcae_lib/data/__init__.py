"""Images as uint8 tensors: the embedded sample, CIFAR-10, or a folder of pictures."""

from .load import load_images
from .pictures import as_png, image_files, open_picture, read_picture
from .sets import CLASSES, DataError, ImageSet, Splits, batches, eval_batch_size, image_set, to_model, to_uint8
