"""Interface between the leader and a dispatcher, and the values that pass through it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ha_beat.dispatch.messages.recipe import Recipes
from ha_beat.errors import HaBeatError, StoreError
from ha_beat.reasons import AnswerKind, TermEnd, UncertainPolicy
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow


class PreparedMessage(Protocol):
    """Message that is complete but not sent."""

    @property
    def size(self) -> int:
        """Return the characters that the message adds to a script call; 0 if no script sends it."""
        ...

    @property
    def timed(self) -> bool:
        """True if the message has an expiry or an ETA, which count from the time at which it was built."""
        ...

    def restamped(self, header: Mapping[str, Any]) -> PreparedMessage:
        """Return the message with other values in this package's header, for a later term or a later occurrence."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """Operation that replaces one entry's ledger row and, if ``message`` is given, enqueues it.

    ``expected`` is the row as last read, empty for none. ``records`` go to the journal. An operation with a ``request``
    id is that request's step number ``step``, from 1, and leaves the row alone. ``uncertain`` is the policy for a
    message of unknown outcome. ``scheduled_ms`` is the due instant plus the entry's jitter, in Unix milliseconds; Redis
    refuses a time ahead of its clock. ``busy_ms`` is the time, in ms, for which the message keeps the entry busy unless
    it ends earlier. ``overlaps``: the message is enqueued even if the entry is busy.
    """

    entry: str
    expected: str
    row: str
    records: tuple[str, ...] = ()
    message: PreparedMessage | None = None
    request: str = ""
    step: int = 0
    task_id: str = ""
    uncertain: UncertainPolicy = UncertainPolicy.SKIP
    scheduled_ms: int = 0
    busy_ms: int = 0
    overlaps: bool = True
    #: Result of :func:`~ha_beat.dispatch.batch.pack`, if the operation was packed ahead. A copy does not have it.
    packed: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Return the message's key. A request's step has a key of the request, since it may repeat a task id."""
        return f"{self.request}:{self.step}" if self.request else self.task_id

    @property
    def size(self) -> int:
        """Return the characters that the operation's message adds to a script call."""
        if self.packed:
            return len(self.packed)
        return self.message.size if self.message is not None else 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Outcome of one operation.

    ``detail`` is the row in the ledger for ``moved``, ``uncertain`` and ``again``, and the error's text for ``error``,
    ``unsent`` and ``partial``, and for an ``uncertain`` step of a request, which has no row. For ``paused`` it is
    ``entry`` if only the entry is paused. For ``overlap`` it is ``unreported`` if no worker reports ends of messages.
    """

    kind: AnswerKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """Claim found in the store, under its ``key``.

    ``json`` is the claim as written under the term of ``nonce``, ``row`` the entry's row while it is claimed,
    ``before`` the row that the claim replaced, and ``records`` the journal records of a confirmed publish. ``unsent``:
    the replica that made the claim is certain that the message was not sent.
    """

    key: str
    json: str
    entry: str
    nonce: str
    policy: UncertainPolicy
    row: str
    records: tuple[str, ...]
    before: str = ""
    unsent: bool = False


class FencedOff(HaBeatError):
    """The term is over, and nothing was done. ``reason`` is why the term ended; ``detail`` is a text for a person."""

    def __init__(self, reason: TermEnd, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


#: Answer for an operation that was carried out.
DONE = Answer(AnswerKind.DONE)


class Dispatcher(Protocol):
    """Dispatcher: one way to enqueue occurrences and to record them in ``ledger``.

    The default bodies are those of a dispatcher that enqueues and records in one step, and so makes no claims.
    """

    ledger: Ledger
    #: Reader of recipes, which finds the messages that can be built ahead.
    recipes: Recipes

    @property
    def capacity(self) -> int:
        """Return how many messages can be sent in the time of one batch; at least 1."""
        return sys.maxsize

    @property
    def obstacle(self) -> StoreError | None:
        """Return the error that kept messages of the last batch from being sent, if one is known."""
        return None

    def prepare(
        self, entry: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage:
        """Build the entry's message.

        Raises:
            Declined: the entry's task published nothing.
            Exception: any exception of the broker, or of the entry's task, router or serializer. Call it within
                :func:`~ha_beat.dispatch.messages.build_errors.judged_build_errors`.
        """
        ...

    def prepare_ahead(
        self, entry: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage | None:
        """Build the message of an entry that has a recipe.

        Returns:
            ``None`` if the message depends on the broker's present state, such as the queues of an exchange.

        Raises:
            Exception: as from :meth:`prepare`.
        """
        ...

    def pack(self, operation: Operation) -> bytes:
        """Return an operation as it is sent to Redis, to do this work ahead; empty if it can't be done ahead."""
        return b""

    def broker_error(self, exc: BaseException) -> StoreError | None:
        """Return the broker's failure that led to an exception of :meth:`prepare`, or ``None`` if there was none.

        May make a round trip to the broker.
        """
        ...

    def submit(
        self, term: Term, operations: Sequence[Operation], meanwhile: Callable[[], None] | None = None
    ) -> list[Answer]:
        """Carry out a batch. Submitting the same batch again is safe.

        A batch has at most one operation per entry, or several steps of one request.

        ``meanwhile``, which must not raise, may be called once while the batch is under way.

        Raises:
            FencedOff: the term is over.
            StoreUnavailable: the outcome is unknown.
            StoreRefused: nothing was done.
        """
        ...

    def drop_refused(self, operations: Sequence[Operation]) -> bool:
        """Drop a batch that :meth:`submit` found refused, so that its entries can be judged again.

        Returns:
            False if a part of it may have been carried out. It must be submitted again.
        """
        return True

    # --- Claims

    def open_claims(self, term: Term) -> list[OpenClaim]:
        """Return the claims of every term that are still open or unsent.

        Raises:
            StoreError: Redis did not answer, or refused.
        """
        return []

    def take_back(self, term: Term) -> frozenset[str]:
        """Undo the claims that are marked as unsent. Return their entries.

        Raises:
            FencedOff: the term is over.
            StoreError: as from :meth:`submit`. Taking back again is safe.
        """
        return frozenset()

    def record_uncertain(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        """Record claims as uncertain. Return the new rows, by entry, of the claims that were still open.

        Raises:
            FencedOff: the term is over.
            StoreUnavailable: the outcome is unknown. Recording the same claims again is safe.
        """
        return {}

    def confirm_late(self) -> None:
        """Confirm messages that the broker accepted while Redis was unreachable, and mark the claims of those not sent.

        Not fenced: a standby does this too.

        Raises:
            StoreUnavailable: Redis is still unreachable.
        """
        return
