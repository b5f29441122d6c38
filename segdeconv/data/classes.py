"""Names of the classes of a data set whose images have one label each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassNames:
    """The classes of a data set.

    Args:
        name: Of the set, for messages.
        class_names: In the order of the labels, 0 to C - 1.
    """

    name: str
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number C of classes."""
        return len(self.class_names)

    def check(self, labels: Tensor | Sequence[int], source: str) -> None:
        """Look whether labels are those of the classes.

        Args:
            labels: Whole numbers.
            source: Where they stand, for the message.

        Raises:
            ValueError: If one is below 0 or above C - 1.
        """
        labels = torch.as_tensor(labels)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(
                f"{source} holds the label {int(wrong[0])}, but {self.name} has {self.num_classes} "
                f"classes, 0 to {self.num_classes - 1}; it is damaged or another data set's"
            )
