"""ImageNet at 64 pixels, with the class labels; evaluated on 10 validation images of each class."""

import os

import numpy as np

from datautils.imagedir import ImageDir, Labels

_EVERY, _TAKEN = 50, 10  # the validation set has 50 images of each class


class ImageNet64(ImageDir):
    """ImageNet at 64×64 with labels from 0 to 999, in two folders or zip files.

    All images of `path` are for training. Held out are, of each class of `heldout_path`, the images
    whose index within the class, in the order of the names, is below 10 modulo 50: of the standard
    validation set 10,000. There the classes take turns, so that the first thousand show them all.
    Raises DataError if labels are missing, besides what ImageDir raises.
    """

    prepared = True

    def __init__(
        self,
        path: str | os.PathLike[str] = "data/imagenet64-train.zip",
        split: str = "train",
        *,
        heldout_path: str | os.PathLike[str] = "data/imagenet64-val.zip",
        labels: str = "auto",
    ):
        super().__init__(
            path, split, heldout_path=heldout_path, size=64, labels=labels, num_classes=1000
        )

    def _choose(self, labels: Labels) -> np.ndarray:
        if self.split != "heldout":
            return np.arange(len(labels.values))
        by_class = np.argsort(labels.values, kind="stable")
        _, counts = np.unique(labels.values, return_counts=True)
        within = np.concatenate([np.arange(count) for count in counts])
        taken = within % _EVERY < _TAKEN
        return by_class[taken][np.argsort(within[taken], kind="stable")]
