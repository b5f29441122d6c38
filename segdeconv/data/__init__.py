"""Data sets of images with label maps, and what is done to them on the way to the network.

A sample is a dictionary: ``image``, float32 (3, H, W); ``mask``, int64 (H, W), with train ids 0 to
C - 1 and the label set's ``ignore_index``; ``name``.  Without a transform, ``image`` is uint8
(H, W, 3) and ``mask`` uint8 (H, W).
"""

from typing import Any

from segdeconv.data.camvid import CamVid
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.folder import FolderDataset
from segdeconv.data.synthetic import SyntheticStreets
from segdeconv.registry import Registry

DATASETS = Registry[Any](
    "data set",
    cityscapes=Cityscapes,
    camvid=CamVid,
    folder=FolderDataset,
    synthetic=SyntheticStreets,
)
