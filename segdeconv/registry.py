"""A table from name to entry, the one way segdeconv chooses things by name."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

T = TypeVar("T")


def suggest(name: object, known: Iterable[str], rest: str) -> str:
    """``rest`` of a sentence about an unknown name, behind the nearest known one as a question."""
    near = get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}? {rest[0].upper()}{rest[1:]}" if near else rest


class Registry(Generic[T]):
    """A table from name to entry; adding a name twice fails, a missing name lists what exists.

    Args:
        kind: What the entries are, in the singular, for messages ("operator").
        **entries: The rows to begin with.
    """

    def __init__(self, kind: str, **entries: T) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def add(self, name: str, entry: T) -> T:
        """Add a row and return its entry; raise ``ValueError`` if the name is taken."""
        if name in self._entries:
            raise ValueError(
                f"{self.kind} {name!r} is already registered as {self._entries[name]!r}"
            )
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            rest = suggest(name, self._entries, f"known: {', '.join(self)}")
            raise ValueError(f"unknown {self.kind} {name!r}; {rest}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
