"""Limit on the size of a message, checked before the message is encoded."""

from __future__ import annotations

import marshal
from typing import Any

from ha_beat.errors import HaBeatError

#: Most bytes of an entry's arguments and headers. Each MB stops the main loop, and Redis, for some 20 ms.
LARGEST = 16_000_000

#: Most values that are examined one by one. The size of more values is found by encoding them, which takes less time.
#: Values that cannot be encoded have the higher limit.
_FEW, _MANY = 30, 100_000
_TEXT, _SEQUENCE = (str, bytes), (list, tuple)


class MessageTooLarge(HaBeatError):
    """The message would stop the other entries for too long."""

    def __init__(self) -> None:
        super().__init__(f"it has more than {LARGEST // 1_000_000} MB of arguments or headers: store them elsewhere")


def is_larger(value: Any, size: int) -> bool:
    """True if plain values take more than this many bytes when they are encoded. Copies no large text."""
    larger = _examined(value, size, _FEW)
    if larger is not None:
        return larger
    try:
        return len(marshal.dumps(value)) > size
    except ValueError:
        # Some values are not plain. If they are too many to examine, their size is known once they are encoded.
        return bool(_examined(value, size, _MANY))


def _examined(value: Any, size: int, limit: int) -> bool | None:
    """Examine the values one by one. Return ``None`` if there are more than ``limit``, as in a list within itself."""
    left, weight = [value], 0
    for _ in range(limit):
        if not left:
            return False
        each = left.pop()
        if isinstance(each, _TEXT):
            weight += len(each)
            if weight > size:
                return True
            continue
        if isinstance(each, dict):
            left += [*each, *each.values()]
        elif isinstance(each, _SEQUENCE):
            left += each
        else:
            continue
        if len(left) > limit:
            break
    return None
