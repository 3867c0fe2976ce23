"""Messages that were built and not certainly enqueued.

A task class may reserve something when its message is built, for example a lock that its run releases. If the message
were built again, the task would find its own lock and publish nothing. So the message of an occurrence is built once,
and kept until it is enqueued, across the terms of this process. If the process dies, the reservation remains without a
message, as with plain beat.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ha_beat.dispatch import Dispatcher, PreparedMessage
from ha_beat.leader.entry import EntryState, ScheduledEntry

#: Most messages that are kept. The oldest is dropped for a new one.
_MOST = 1000


@dataclass(slots=True)
class KeptMessage:
    """Message of the occurrence due ``at``. It is valid only for its dispatcher and its definition."""

    message: PreparedMessage
    at: datetime
    dispatcher: Dispatcher
    definition: Any
    #: Args and kwargs of the message.
    arguments: Any
    #: Runs of the entry when it was kept. Another leader that enqueues the occurrence adds one.
    runs: int
    #: True if it was certainly not enqueued.
    unsent: bool = False

    def is_of(self, at: datetime) -> bool:
        """True if it is the message of the occurrence due ``at``, and equals one that is built now."""
        return self.at == at and not self.message.timed

    def usable_in_place(self, state: EntryState, at: datetime, arguments: Any) -> bool:
        """True if it can be sent as the message of the occurrence due ``at``, for which none can be built.

        If that is a later occurrence than its own, the arguments must be the same, it must have no expiry or ETA, and
        certainly neither it nor another leader's message of its occurrence was enqueued.
        """
        if self.at == at:
            return True
        if self.message.timed:
            return False
        if state.runs != self.runs or not same_definition(self.arguments, arguments):  # guard: kept-not-run-elsewhere
            return False
        return self.unsent or state.position < self.at  # guard: kept-certainly-unsent


class KeptMessages:
    """Newest message of each entry that was built and not enqueued. Used by the main loop only."""

    def __init__(self) -> None:
        self._messages: dict[str, KeptMessage] = {}

    def find(self, entry: ScheduledEntry, dispatcher: Dispatcher) -> KeptMessage | None:
        """Return the entry's message; ``None`` if there is none, or the entry was edited."""
        kept = self._messages.get(entry.id)
        if (
            kept is None
            or kept.dispatcher is not dispatcher
            or not same_definition(kept.definition, definition_of(entry))
        ):
            return None
        return kept

    def keep(
        self, state: EntryState, at: datetime, dispatcher: Dispatcher, message: PreparedMessage, arguments: Any
    ) -> None:
        """Keep the message of the entry's occurrence due ``at``."""
        self._messages.pop(state.id, None)
        definition = definition_of(state.entry)
        self._messages[state.id] = KeptMessage(message, at, dispatcher, definition, arguments, state.runs)
        if len(self._messages) > _MOST:
            del self._messages[next(iter(self._messages))]

    def submitted(self, entry_id: str) -> None:
        """Note that the message is submitted, and so may be enqueued."""
        self._mark(entry_id, unsent=False)

    def unsent(self, entry_id: str) -> None:
        """Note that the message was certainly not enqueued."""
        self._mark(entry_id, unsent=True)

    def passed_over(self, state: EntryState) -> None:
        """Note that the message was not enqueued, because the row moved past its occurrence without it."""
        kept = self._messages.get(state.id)
        if kept is None:
            return
        if state.position < kept.at:  # guard: kept-passed-over
            kept.unsent = True

    def forget(self, entry_id: str) -> None:
        """Forget a message that was, or may have been, enqueued."""
        self._messages.pop(entry_id, None)

    def _mark(self, entry_id: str, *, unsent: bool) -> None:
        if (kept := self._messages.get(entry_id)) is not None:
            kept.unsent = unsent


def definition_of(entry: ScheduledEntry) -> tuple[Any, ...]:
    """Return a copy of everything that a message is built from, for :func:`same_definition`."""
    source = entry.celery_entry
    return entry.signature, source.task, copy(source.args), copy(source.kwargs), copy(source.options)


def same_definition(one: Any, other: Any) -> bool:
    """True if two definitions are certainly equal."""
    try:
        return bool(one == other)
    except Exception:
        # Arguments may have any type, also one that cannot be compared.
        return False
