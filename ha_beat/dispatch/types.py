"""The values that pass between the scheduler and a dispatcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ha_beat.errors import HaBeatError
from ha_beat.lease import Term

#: A message ready to go: final Redis commands, or a publish to be carried out.
Prepared = Any


@dataclass(frozen=True, slots=True)
class Operation:
    """Replace one entry's ledger row and, where ``message`` is given, enqueue it.

    ``expected`` is the row as last seen, empty for none; ``records`` go to the journal. With ``request`` it is step
    number ``step``, from 1, of the request of that id: it leaves the row alone.
    """

    entry: str
    expected: str
    row: str
    records: tuple[str, ...] = ()
    message: Prepared | None = None
    request: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one operation.

    ``done``; ``mine``: an earlier try had done it; ``moved``: the row is another, see ``detail``; ``error``: nothing
    was done, see ``detail``; ``partial``: recorded, but not every queue of several has the message; ``paused``: the
    cluster is; ``withdrawn``: the request waits no more. In the last two, nothing was done.
    """

    kind: Literal["done", "mine", "moved", "error", "partial", "paused", "withdrawn"]
    detail: str = ""


class FencedOff(HaBeatError):
    """The term is not the current one: nothing was done."""


class Dispatcher(Protocol):
    """One way to enqueue and record."""

    def prepare(
        self, entry: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Prepared:
        """Build the entry's message.

        Raises:
            StoreUnavailable: the broker can't be asked what it has to be asked (declarations).
            Exception: whatever the entry's own task, serializer or signal handlers raise.
        """
        ...

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        """Carry out a batch, at most one operation for an entry. Submitting the same batch again is safe.

        Raises:
            FencedOff: refused.
            StoreUnavailable: the outcome is unknown.
            StoreRefused: nothing was done.
        """
        ...

    def holds_lease(self, term: Term) -> bool:
        """Whether the term's lease can be seen where the messages go."""
        ...
