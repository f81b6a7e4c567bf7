"""Choices from the bytes of an input: numbers, elements of a list, and changes of a JSON value."""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Sequence
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 53, 1 << 63, 1 << 64, 10**30, 10**400),
    *(0.0, -0.5, 1e-300, 1e300, float("inf"), float("nan")),
    *(
        "",
        "a",
        "\0",
        "\ud800",
        "../x",
        "/etc/hostname",
        "model.safetensors",
        "\ud800.safetensors",
        "Ġ",
        "[end]",
        "(x+x+)+y",
        "a" * 5000,
    ),
    *([], {}, [[]], [1, 2], [-1], ["a"], {"a": 1}, {"type": "Sequence"}),
)
"""Values that a file rarely has in any place."""


class Bytes:
    """Numbers from bytes, zeros after the last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def next_below(self, limit: int) -> int:
        """Return the next number, at least 0 and below the limit."""
        if self._position >= len(self._data):
            return 0
        self._position += 1
        return self._data[self._position - 1] % limit

    def next_place(self, limit: int) -> int:
        """Return the next number of two bytes, at least 0 and below the limit."""
        return (self.next_below(256) << 8 | self.next_below(256)) % limit

    def choose(self, choices: Any) -> Any:
        """Return one of the choices."""
        return choices[self.next_below(len(choices))]

    def take_int64(self) -> int:
        """Return any integer of 64 bits."""
        packed = bytes(self.next_below(256) for _ in range(8))
        return int(struct.unpack("<q", packed)[0])

    def take_rest(self) -> bytes:
        """Return the bytes that were not used."""
        return self._data[self._position :]


def edit_json(value: Any, numbers: Bytes, *, values: Sequence[Any] = ODD_VALUES) -> Any:
    """Return a copy of a JSON value in which up to four places were replaced, removed, repeated or exchanged."""
    root = [copy.deepcopy(value)]
    for _ in range(1 + numbers.next_below(4)):
        places = list(_list_places(root))
        container, key = places[numbers.next_place(len(places))]
        other, other_key = places[numbers.next_place(len(places))]
        kind = numbers.next_below(8)
        if kind == 0 and container is not root:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[numbers.choose(("", "type", "a", f"{key}s", f"{key:x>5000}"))] = container[key]
        elif kind == 1:
            container.append(copy.deepcopy(container[key]))
        elif kind == 2:
            container[key] = copy.deepcopy(other[other_key])
        elif kind == 3:
            container[key] = numbers.take_int64()
        elif kind == 4 and type(container[key]) is int:
            container[key] += numbers.next_below(9) - 4
        else:
            container[key] = copy.deepcopy(values[numbers.next_place(len(values))])
    return root[0]


def _list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every value inside a list or an object."""
    pending = [value]
    while pending:
        container = pending.pop()
        for key in list(container if isinstance(container, dict) else range(len(container))):
            yield container, key
            if isinstance(container[key], dict | list):
                pending.append(container[key])
