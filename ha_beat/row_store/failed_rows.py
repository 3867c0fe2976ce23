"""Rows that can't be written: how they are found among others, and when they are retried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ha_beat.clock import Clock
from ha_beat.row_store.backend import DatabaseFault
from ha_beat.row_store.limits import first_line

#: Seconds until the first retry, and the longest time between two.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 300.0

#: If this many single rows fail and no row was written, the rows are not at fault.
_SUSPECTS = 8

LOCKED = "another transaction has locked it"


def write_with_bisection(
    ids: Sequence[str],
    write: Callable[[Sequence[str]], Sequence[str]],
    fault_of: Callable[[BaseException], DatabaseFault | None],
    *,
    suspected: bool = False,
) -> dict[str, str]:
    """Write all rows. If that fails, halve them until the rows at fault are found.

    Args:
        ids: Primary keys.
        write: Writes all these rows or none, and returns those that are locked.
        fault_of: Returns the kind of an error.
        suspected: True if the rows have failed before while others were written.

    Returns:
        The errors of the rows at fault.

    Raises:
        Exception: an error that is not the rows' fault, such as a lost connection or a missing permission.
    """
    faults: dict[str, str] = {}
    row_is_at_fault = suspected
    parts = [ids] if ids else []
    while parts:
        part = parts.pop()
        try:
            locked = write(part)
        except Exception as exc:
            fault = fault_of(exc)
            if fault in (None, DatabaseFault.UNREACHABLE):
                raise
            if len(part) > 1:
                # Every second one, because rows at fault are often neighbours.
                parts += [part[1::2], part[::2]]
                continue
            faults[part[0]] = first_line(exc)
            row_is_at_fault = row_is_at_fault or fault is DatabaseFault.ROW
            if not row_is_at_fault and (len(faults) >= _SUSPECTS or not parts):
                raise
        else:
            row_is_at_fault = True
            faults |= dict.fromkeys(locked, LOCKED)
    return faults


@dataclass(frozen=True, slots=True)
class _Failure:
    name: str
    detail: str
    attempts: int
    retry_at: float


class FailedRows:
    """Rows whose last write failed, with the time of the next attempt. Used by the writing thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def __contains__(self, pk: object) -> bool:
        return pk in self._failures

    def split(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the rows that have not failed, and the failed ones whose next attempt is due."""
        if not self._failures:
            return list(ids), []
        now = self._clock.elapsed()
        due = [pk for pk in ids if (failure := self._failures.get(pk)) is not None and failure.retry_at <= now]
        return [pk for pk in ids if pk not in self._failures], due

    def add(self, pk: str, name: str, detail: str) -> None:
        """Note a failed attempt."""
        before = self._failures.get(pk)
        attempts = before.attempts + 1 if before else 1
        pause = min(_FIRST_RETRY * 2 ** min(attempts - 1, 16), _LONGEST_RETRY)
        self._failures[pk] = _Failure(name, detail, attempts, self._clock.elapsed() + pause)

    def remove(self, pk: str) -> None:
        self._failures.pop(pk, None)

    def keep_only(self, ids: Mapping[str, object]) -> None:
        """Forget the rows that are not among these."""
        # The difference of the two views would go through all ids.
        for pk in [pk for pk in self._failures if pk not in ids]:
            del self._failures[pk]

    def errors(self) -> dict[str, str]:
        """Return the errors of the rows that failed more than once, by name."""
        return {failure.name: failure.detail for failure in self._failures.values() if failure.attempts > 1}
