"""Data sets of images with label maps, and what is done to them on the way to the network.

A sample is a dictionary: ``image``, float32 (3, H, W); ``mask``, int64 (H, W), with train ids 0 to
C - 1 and the label set's ``ignore_index``; ``name``.  Without a transform, ``image`` is uint8
(H, W, 3) and ``mask`` uint8 (H, W).

`CLASSIFICATION_DATASETS` have one label per image instead: a batch holds ``image`` (N, C, H, W) and
``label`` (N,).
"""

from typing import Any

from segdeconv.data.camvid import CamVid
from segdeconv.data.cifar import CIFAR10, CIFAR100
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.folder import FolderDataset
from segdeconv.data.image_folder import ImageFolder
from segdeconv.data.mnist import MNIST, FashionMNIST
from segdeconv.data.shards import Shards
from segdeconv.data.synthetic import SyntheticStreets
from segdeconv.registry import Registry

DATASETS = Registry[Any](
    "data set",
    cityscapes=Cityscapes,
    camvid=CamVid,
    folder=FolderDataset,
    synthetic=SyntheticStreets,
)

CLASSIFICATION_DATASETS = Registry[Any](
    "data set",
    cifar10=CIFAR10,
    cifar100=CIFAR100,
    mnist=MNIST,
    fashion_mnist=FashionMNIST,
    image_folder=ImageFolder,
    webdataset=Shards,
)
