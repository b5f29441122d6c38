"""A model as a folder to publish, or to load again by one line."""

import copy
from pathlib import Path

import torch

from segdeconv.export.comparison import AnyModel, Check, compare, probe
from segdeconv.export.files import FORMATS, new_folder
from segdeconv.models import from_pretrained


def export_pretrained(model: AnyModel, folder: Path, *, overwrite: bool = False) -> Check:
    """Write a model as `segdeconv.from_pretrained` reads it, with its model card.

    Args:
        model: Any mode, on any device; what the card says of its training is in ``model.about``.
        folder: New or empty folder.
        overwrite: Replace an earlier export.

    Raises:
        ValueError: The folder is taken; the model is not what its config builds; what was written
            differs.
    """
    model = copy.deepcopy(model).cpu().eval()
    with new_folder(folder, overwrite) as part:
        model.save_pretrained(part)
        again = from_pretrained(part)
        with torch.no_grad():
            found, expected = again(probe(model)), model(probe(model))
        assert again.weights_report is not None
        note = f"{again.weights_report.loaded} tensors, for segdeconv.from_pretrained"
        check = compare(FORMATS["safetensors"], [found], [expected], [0.0], note)
    return check
