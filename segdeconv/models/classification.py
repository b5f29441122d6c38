"""Image classifiers by name: `create_classifier`, to train an encoder before it segments.

The core is that of the segmentation models: network, then weights, then surgery, with the same
reports.  A name is looked up among the ten networks of `segdeconv.models.CLASSIFIERS` (for small
images only), torchvision's classifiers, smp's encoders and, as "tu-<name>", timm's models.  The
libraries' own names of parameters stay, so that weights go from a classifier to a segmentation
model and back.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn

from segdeconv.models.architectures import take_channels
from segdeconv.models.checks import check_counts, check_images
from segdeconv.models.create import finish
from segdeconv.models.pretrained import About, Pretrained
from segdeconv.models.small_networks import CLASSIFIERS, take_small_input
from segdeconv.models.weights import Fit, State, WeightsReport, best_fit
from segdeconv.operators import OPERATORS
from segdeconv.registry import suggest
from segdeconv.surgery import SurgeryReport

if TYPE_CHECKING:
    from segdeconv.models.weights import AnyModel

SMALL, LARGE = 32, 224  # height and width of the images that the networks were drawn up for
_OTHERS = "use another network, such as resnet50 or tu-regnety_004"


class ClassificationModel(nn.Module, Pretrained):
    """An image classifier: (N, in_channels, H, W) -> logits (N, num_classes).

    Attributes:
        network: The library's own network, or one of `segdeconv.models.CLASSIFIERS`.
        config: Arguments of `create_classifier` that build this model again; JSON-able.
        surgery_report: What the operator did.
        weights_report: What was loaded, or None.
        about: What `save_pretrained` is to say of the training.
    """

    task = "classification"
    surgery_report: SurgeryReport
    weights_report: WeightsReport | None = None

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.about = About()

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes).

        Raises:
            ValueError: If images are not a batch, or have other channels.
        """
        check_images(images, self.config["in_channels"])
        return cast(Tensor, self.network(images))

    @property
    def encoder(self) -> nn.Module:
        """Smp's encoder; else the network, of which the last layer is the head."""
        network = self.network
        return network.encoder if isinstance(network, EncoderClassifier) else network

    @property
    def head_name(self) -> str:
        """Name of the last layer, which gives the logits."""
        layers = (nn.Linear, nn.Conv2d)
        names: list[str] = [n for n, m in self.named_modules() if isinstance(m, layers)]
        return names[-1]


class EncoderClassifier(nn.Module):
    """The last features of an smp encoder, their mean over the image, one linear layer."""

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(cast(Any, encoder).out_channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)."""
        return cast(Tensor, self.classifier(self.encoder(images)[-1].mean((2, 3))))


def create_classifier(
    name: str,
    num_classes: int = 10,
    operator: str = "deconv",
    operator_options: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    small_input: bool = True,
    weights: str | Path | None = None,
) -> ClassificationModel:
    """An image classifier whose layers are given to an operator.

        >>> model = create_classifier("resnet18", num_classes=10, operator="deconv")
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Args:
        name: Row of `segdeconv.models.CLASSIFIERS`, a classifier of torchvision, an encoder of smp,
            or a model of timm as "tu-<name>".
        num_classes: Number of logits.
        operator: Row of `segdeconv.operators.OPERATORS`; "batchnorm" leaves the network as it is.
        operator_options: Keyword arguments of `segdeconv.convert`: options of the operator, such
            as {"block": 64}, and ``options_by_name`` and ``skip`` with globs on module names.
        in_channels: Channels of the images.
        small_input: For images of about 32 x 32: the rows of `segdeconv.models.CLASSIFIERS` as they
            are, any other network with a stem of 3 x 3 and stride 1 and no pooling behind it.
            False: the library's network as it is.
        weights: Local file: of a whole classifier, of one for other classes, whose last layer is
            then left out, or of an smp encoder.  A plain network's are loaded before the surgery,
            those of a converted one after it.

    Returns:
        The model, in training mode, with reports of the surgery and of the weights.

    Raises:
        ValueError: A name that does not exist (with the nearest one), numbers below 1, a network
            that has no form for small images, options or weights that do not fit.
    """
    OPERATORS[operator]  # an unknown name fails here, before seconds of building
    config = {
        "name": name,
        "num_classes": num_classes,
        "operator": operator,
        "operator_options": dict(operator_options or {}),
        "in_channels": in_channels,
        "small_input": small_input,
    }
    check_counts(num_classes=num_classes, in_channels=in_channels)
    network = _build(name, num_classes, in_channels, small_input)
    model = ClassificationModel(network, copy.deepcopy(config))
    finish(model, weights, SMALL if small_input else LARGE, fit=fit_but_for_head)
    return model


def _build(name: str, num_classes: int, in_channels: int, small_input: bool) -> nn.Module:
    """The network with random weights.

    Raises:
        ValueError: No such name, or the network does not take such images.
    """
    if not isinstance(name, str):
        raise ValueError(f"name={name!r}: expected the name of a network, such as 'resnet18'")
    check_name(name, small_input)
    if small_input and name in CLASSIFIERS:
        return CLASSIFIERS[name].build_afresh(in_channels, num_classes)
    if name in CLASSIFIERS:
        name = CLASSIFIERS[name].large or name
    size = SMALL if small_input else LARGE
    try:
        network = _library_network(name, num_classes, 3 if small_input else in_channels)
        if small_input:
            take_small_input(network, in_channels)
        shape = _logits_shape(network, in_channels, size)
    except Exception as error:  # the libraries refuse in many ways, and a stem may not be given
        reason = str(error).strip().split("\n")[0].rstrip(".!") or type(error).__name__
        own_stem = "small_input=False keeps its own stem, for larger images"
        raise ValueError(
            f"{name!r} cannot be built for images of {size} x {size} ({reason}); "
            f"{own_stem if small_input else _OTHERS}"
        ) from error
    if shape != (2, num_classes):
        found = "several tensors" if shape is None else f"a tensor of shape {tuple(shape)}"
        raise ValueError(f"{name!r} gives {found} for two images in training; {_OTHERS}")
    return network


def _library_network(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """The network of torchvision, smp or timm."""
    network: nn.Module
    if name in _torchvision_names():
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        if in_channels != 3:
            take_channels(network, in_channels)
    elif name in smp.encoders.get_encoder_names():
        encoder = smp.encoders.get_encoder(name, in_channels=in_channels, weights=None)
        network = EncoderClassifier(encoder, num_classes)
    else:
        timm_name = name.removeprefix("tu-")
        network = timm.create_model(
            timm_name, pretrained=False, num_classes=num_classes, in_chans=in_channels
        )
    return network


def _torchvision_names() -> list[str]:
    return cast(list[str], torchvision.models.list_models(module=torchvision.models))


def check_name(name: str, small_input: bool) -> None:
    """Look whether there is such a network; builds nothing.

    Args:
        name: As for `create_classifier`.
        small_input: Likewise.

    Raises:
        ValueError: If there is none (with the nearest name), or none for such images.
    """
    if name in CLASSIFIERS and (small_input or CLASSIFIERS[name].large):
        return
    native = [*_torchvision_names(), *smp.encoders.get_encoder_names()]
    if name in native or (name.startswith("tu-") and timm.is_model(name[3:])):
        return
    if name in CLASSIFIERS:
        raise ValueError(
            f"{name!r} exists for images of 32 x 32 only; leave small_input=True, or {_OTHERS}"
        )
    known = [*CLASSIFIERS, *native, *(f"tu-{model}" for model in timm.list_models())]
    same = f"tu-{name}"
    rest = suggest(
        name,
        [same] if same in known else known,
        "they are listed by segdeconv.models.CLASSIFIERS, torchvision.models.list_models(), "
        "segmentation_models_pytorch.encoders.get_encoder_names() and, with 'tu-' in front, "
        "timm.list_models()",
    )
    raise ValueError(f"unknown network {name!r}; {rest}")


def _logits_shape(network: nn.Module, channels: int, size: int) -> torch.Size | None:
    """Shape of the logits of two images; None if they are not one tensor.

    Runs on the meta device: shapes only, no state changes.
    """
    tensors = (*network.named_parameters(), *network.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    images = torch.empty(2, channels, size, size, device="meta")
    with torch.no_grad():
        logits = torch.func.functional_call(network, state, (images,))
    return logits.shape if isinstance(logits, Tensor) else None


def fit_but_for_head(model: "AnyModel", state: State) -> Fit:
    """The best fit, and if nothing but the last layer is wrong in it, the fit without that layer.

    A file without the layer, or for another number of classes, is what transfer to new classes
    starts from; the report names what was left out and what is fresh.
    """
    fit = best_fit(model, state)
    head = f"{cast(ClassificationModel, model).head_name}."
    wrong = [*fit.missing, *fit.misfits]
    if fit.unexpected or not wrong or not all(key.startswith(head) for key in wrong):
        return fit
    dropped = fit.dropped + Counter({head.removeprefix("network.")[:-1]: len(fit.misfits)})
    return Fit(fit.part, fit.pairs, dropped=dropped)
