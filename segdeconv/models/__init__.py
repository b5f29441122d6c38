"""Models by name: `create_model` for segmentation, `create_classifier` for whole images."""

from segdeconv.models.architectures import ARCHITECTURES as ARCHITECTURES
from segdeconv.models.classification import ClassificationModel as ClassificationModel
from segdeconv.models.classification import create_classifier as create_classifier
from segdeconv.models.create import create_model as create_model
from segdeconv.models.pretrained import About as About
from segdeconv.models.pretrained import from_pretrained as from_pretrained
from segdeconv.models.segmentation import SegmentationModel as SegmentationModel
from segdeconv.models.segmentation import SegmentationOutput as SegmentationOutput
from segdeconv.models.small_networks import CLASSIFIERS as CLASSIFIERS
from segdeconv.models.weights import WeightsReport as WeightsReport
from segdeconv.models.weights import load_weights as load_weights
