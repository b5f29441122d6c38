"""Segmentation models by name: `create_model`."""

from segdeconv.models.architectures import ARCHITECTURES as ARCHITECTURES
from segdeconv.models.create import create_model as create_model
from segdeconv.models.segmentation import SegmentationModel as SegmentationModel
from segdeconv.models.segmentation import SegmentationOutput as SegmentationOutput
from segdeconv.models.weights import WeightsReport as WeightsReport
from segdeconv.models.weights import load_weights as load_weights
