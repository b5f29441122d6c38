"""What a number in a configuration may be, said with its key."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

RANGES: dict[str, Callable[[float], bool]] = {
    "0 or more": lambda number: number >= 0,
    "1 or more": lambda number: number >= 1,
    "-1 or more": lambda number: number >= -1,
    "above 0": lambda number: number > 0,
    "0 to 1": lambda number: 0 <= number <= 1,
    "above 0, at most 1": lambda number: 0 < number <= 1,
    "1 or more, or -1 for no limit": lambda number: number == -1 or number >= 1,
    "0 to 4294967295": lambda number: 0 <= number < 2**32,
}


def check_ranges(group: str, values: Mapping[str, Any], **wanted: str) -> None:
    """Compare settings with their ranges; null, and values that are no numbers, are left alone.

    Args:
        group: Group of the configuration that they stand in; "" for those outside of all groups.
        values: Value of each setting: a number, or numbers in a list or a mapping.
        **wanted: Setting -> row of `RANGES`.

    Raises:
        ValueError: If a number is outside of its range, infinite or not a number.
    """
    for name, words in wanted.items():
        for number in _numbers(values[name]):
            if not (math.isfinite(number) and RANGES[words](number)):
                key = f"{group}.{name}" if group else name
                each = "" if number is values[name] else " each"
                raise ValueError(f"{key}={_shown(values[name])}: expected {words}{each}")


def check_weights(key: str, weights: Mapping[str, float] | list[float] | None) -> None:
    """Weights of a sum are 0 or more, and not all of them 0.

    Raises:
        ValueError: If they are not.
    """
    group, name = key.split(".")
    check_ranges(group, {name: weights}, **{name: "0 or more"})
    if weights and not any(_numbers(weights)):
        raise ValueError(f"{key}={_shown(weights)}: expected a weight above 0 among them")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int | float) and not isinstance(each, bool):
            yield each


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
