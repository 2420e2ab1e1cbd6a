"""Pictures and clips for training and measuring: loading from any source, splitting, augmenting."""

from nestor.data.augment import Augment
from nestor.data.clips import MOTIONS, Clips, Examples, load_clips
from nestor.data.decode import MAX_PIXELS, open_picture
from nestor.data.load import load, load_splits
from nestor.data.pictures import IMAGENET_MEAN, IMAGENET_STD, Pictures, require_classes
from nestor.data.strata import split

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_PIXELS",
    "MOTIONS",
    "Augment",
    "Clips",
    "Examples",
    "Pictures",
    "load",
    "load_clips",
    "load_splits",
    "open_picture",
    "require_classes",
    "split",
]
