"""The values that pass between the scheduler and a dispatcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ha_beat.errors import HaBeatError
from ha_beat.reasons import AnswerKind, TermEnd, UncertainPolicy
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow

#: A message ready to go: final Redis commands, or a publish to be carried out.
Prepared = Any


@dataclass(frozen=True, slots=True)
class Operation:
    """Replace one entry's ledger row and, where ``message`` is given, enqueue it.

    ``expected`` is the row as last seen, empty for none; ``records`` go to the journal. With ``request`` it is step
    number ``step``, from 1, of the request of that id: it leaves the row alone. ``uncertain`` says what becomes of a
    message whose fate nobody knows. An instant ``scheduled_ms`` (Unix) that Redis holds to lie ahead is refused.
    """

    entry: str
    expected: str
    row: str
    records: tuple[str, ...] = ()
    message: Prepared | None = None
    request: str = ""
    step: int = 0
    task_id: str = ""
    uncertain: UncertainPolicy = UncertainPolicy.SKIP
    scheduled_ms: int = 0

    @property
    def size(self) -> int:
        """Of the message as Redis commands, in characters; 0 where it is none."""
        return sum(len(part) for command in self.message or () if isinstance(command, tuple) for part in command)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one operation.

    ``done``; ``mine``: an earlier try had done it; ``moved``: the row is another, see ``detail``; ``error``: nothing
    was done, see ``detail``; ``partial``: recorded, but not every queue of several has the message; ``paused``: the
    cluster is; ``withdrawn``: the request waits no more. In the last two, nothing was done.

    Where the broker is not the lease's Redis also ``unsent``: nothing was done, since the broker is out of reach;
    ``uncertain``: claimed, and nobody knows whether it was enqueued; ``again``: likewise, and to be sent again. In the
    last two ``detail`` is the row as it stands now.
    """

    kind: AnswerKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """A claim found in the store, under its ``key``.

    ``json`` is the claim as its maker wrote it under the term of ``nonce``, ``row`` the entry's row with it,
    ``records`` what the journal would have had.
    """

    key: str
    json: str
    entry: str
    nonce: str
    policy: UncertainPolicy
    row: str
    records: tuple[str, ...]


class FencedOff(HaBeatError):
    """The term is over, and nothing was done. ``reason`` is why it ended; ``detail`` explains it to a person."""

    def __init__(self, reason: TermEnd, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class Dispatcher(Protocol):
    """One way to enqueue and record. ``ledger`` is where it records."""

    @property
    def ledger(self) -> Ledger: ...

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

    def open_claims(self, term: Term) -> list[OpenClaim]:
        """Claims, of whatever term, that nobody has settled.

        Raises:
            StoreUnavailable: it can't be known now.
        """
        ...

    def give_up(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        """Settle claims as uncertain; the rows of those that were open, by entry.

        Raises:
            FencedOff: refused.
            StoreUnavailable: the outcome is unknown. Giving up the same claims again is safe.
        """
        ...

    def settle_up(self) -> None:
        """Record what the broker has accepted and Redis could not be told of; also for a replica that stands by.

        Raises:
            StoreUnavailable: Redis can't be told now either.
        """
        ...
