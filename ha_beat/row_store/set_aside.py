"""Rows that can't be written: how they are found among others, and when they are tried again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ha_beat.clock import Clock
from ha_beat.row_store.backend import DatabaseFault
from ha_beat.row_store.limits import first_line

#: Seconds until the second attempt, and the longest time between two.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 300.0

#: If so many single rows fail and none was written, the rows are not at fault.
_SUSPECTS = 8

#: Errors after which no other row could be written either.
_ENDS_ALL = (None, DatabaseFault.UNREACHABLE)

LOCKED = "another transaction has locked it"


def write_apart(
    ids: Sequence[str],
    write: Callable[[Sequence[str]], Sequence[str]],
    fault_of: Callable[[BaseException], DatabaseFault | None],
    *,
    suspected: bool = False,
) -> dict[str, str]:
    """Write all rows; if that fails, halve them until those at fault are found.

    Args:
        ids: Primary keys.
        write: Write these rows or none, and return those that are locked.
        fault_of: Return the kind of an error of the database.
        suspected: The rows have failed before, while others were written.

    Returns:
        The errors of the rows at fault.

    Raises:
        Exception: an error that is not the rows', such as a lost connection or a missing permission.
    """
    faults: dict[str, str] = {}
    certain, written = suspected, False
    parts = [ids] if ids else []
    while parts:
        part = parts.pop()
        try:
            locked = write(part)
        except Exception as exc:
            fault = fault_of(exc)
            if fault in _ENDS_ALL:
                raise
            if len(part) > 1:
                # Odd and even, because those at fault are often neighbours.
                parts += [part[1::2], part[::2]]
                continue
            faults[part[0]] = first_line(exc)
            certain = certain or fault is DatabaseFault.ROW
            if not (certain or written) and (len(faults) >= _SUSPECTS or not parts):
                raise
        else:
            written = True
            faults |= dict.fromkeys(locked, LOCKED)
    return faults


@dataclass(frozen=True, slots=True)
class _Fault:
    name: str
    detail: str
    attempts: int
    retry_at: float


class RowsSetAside:
    """Rows that could not be written, with the time of the next attempt. Used by the writing thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._faults: dict[str, _Fault] = {}

    def __contains__(self, pk: object) -> bool:
        return pk in self._faults

    def split(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the rows that are not set aside, and those that are and whose next attempt is due."""
        if not self._faults:
            return list(ids), []
        now = self._clock.elapsed()
        due = [pk for pk in ids if (fault := self._faults.get(pk)) is not None and fault.retry_at <= now]
        return [pk for pk in ids if pk not in self._faults], due

    def add(self, pk: str, name: str, detail: str) -> None:
        """Set a row aside after an attempt that failed."""
        before = self._faults.get(pk)
        attempts = before.attempts + 1 if before else 1
        pause = min(_FIRST_RETRY * 2 ** min(attempts - 1, 16), _LONGEST_RETRY)
        self._faults[pk] = _Fault(name, detail, attempts, self._clock.elapsed() + pause)

    def remove(self, pk: str) -> None:
        self._faults.pop(pk, None)

    def keep(self, ids: Mapping[str, object]) -> None:
        """Forget the rows that are no longer in the schedule."""
        # The difference of the two views would go through all ids.
        for pk in [pk for pk in self._faults if pk not in ids]:
            del self._faults[pk]

    def faults(self) -> dict[str, str]:
        """Return the errors of the rows that failed more than once, by name."""
        return {fault.name: fault.detail for fault in self._faults.values() if fault.attempts > 1}
