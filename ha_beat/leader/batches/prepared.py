"""Occurrences that are prepared ahead, while the main loop has nothing else to do.

At a due instant of many entries, most of the time would go into their messages, rows and records. A leader therefore
prepares the occurrences of the next seconds completely, for the case that each is enqueued on time and alone. At the
instant the entry is decided on as ever. If anything is not as it was foreseen, what was prepared is thrown away and
the occurrence is built as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ha_beat.dispatch import Dispatcher, PreparedMessage
from ha_beat.dispatch.messages.build import is_larger
from ha_beat.dispatch.messages.recipe import Recipe
from ha_beat.headers import with_header
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.gc_pause import gc_paused
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter, following
from ha_beat.leader.parts import LeaderParts
from ha_beat.schedule.misfire import Decision
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: How far ahead occurrences are prepared.
_AHEAD = timedelta(seconds=30)

#: Most occurrences, and most characters of them, that wait for their instant.
_MOST, _MOST_CHARACTERS = 20_000, 64_000_000

#: Most bytes of an entry's arguments and options: a message is built within ``_SPARE``, and delays no entry.
_LARGEST = 100_000

#: Seconds for which the main loop prepares at once, and the least time until the next entry is due.
_SLICE, _SPARE = 0.01, 0.03

#: Longest time in seconds that a message may take to build, and the pause after one that took longer.
_SLOW, _REST = 0.05, 5.0

#: Stands for the time of submission, in ms since the Unix epoch. No text in JSON contains it.
_STAMP = "\0" * 13


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Occurrence that is complete except for the time of its submission, and what it was made from.

    ``packed`` are the parts of its packed form, with the time between them; empty if it has none.
    """

    state: EntryState
    entry: ScheduledEntry
    before: LedgerRow | None
    dispatcher: Dispatcher
    recipe: Recipe
    following: datetime | None
    operation: EntryOperation
    packed: list[bytes]
    size: int

    def is_for(self, writer: LedgerWriter, state: EntryState, decision: Decision, dispatcher: Dispatcher) -> bool:
        """True if the present path would enqueue the same."""
        row = self.operation.row
        return (
            _is_regular(state)
            and self.state is state
            and self.entry is state.entry  # guard: prepared-same-entry
            and self.before is state.row  # guard: prepared-same-row
            and self.dispatcher is dispatcher
            and len(str(writer.ms)) == len(_STAMP)
            and (row.epoch, row.nonce) == (writer.term.epoch, writer.term.nonce)  # guard: prepared-same-term
            and decision == self.operation.decision  # guard: prepared-same-decision
            and following(state, row.base) == self.following
            and dispatcher.recipes.of(state.entry.celery_entry) == self.recipe  # guard: prepared-same-recipe
        )

    def stamped(self, ms: int) -> EntryOperation:
        """Return the operation, submitted at this time."""
        text, row, operation = str(ms), self.operation.row, self.operation.operation
        raw = row.raw.replace(_STAMP, text)
        records = tuple([record.replace(_STAMP, text) for record in operation.records])
        packed = text.encode().join(self.packed) if self.packed else b""
        _complete(row, dispatched_ms=ms, raw=raw)
        _complete(operation, row=raw, records=records, packed=packed)
        return self.operation


class PreparedOccurrences:
    """Prepared occurrences of one term, at most one of each entry. Used by the main loop only."""

    def __init__(self, parts: LeaderParts) -> None:
        self._parts = parts
        self._found: dict[str, _Prepared] = {}
        self._characters = 0
        #: Recipes of messages that depend on what the broker has at the instant, by entry.
        self._not_ahead: dict[str, Recipe] = {}
        #: Time of ``Clock.elapsed`` before which nothing is prepared.
        self._rest_until = 0.0
        #: Recipes that were read last, and until when they are recent.
        self._recipes: object = None
        self._read_until = 0.0

    def __len__(self) -> int:
        return len(self._found)

    def read_recipes(self, dispatcher: Dispatcher) -> None:
        """Read what the messages of due entries have in common. For entries ahead, it is good for a slice."""
        dispatcher.recipes.refresh()
        self._recipes, self._read_until = dispatcher.recipes, self._parts.clock.elapsed() + _SLICE

    def clear(self) -> None:
        """Throw all away."""
        self._found.clear()
        self._not_ahead.clear()
        self._characters = 0

    def prepare(self, term: Term, queue: DueQueue, dispatcher: Dispatcher, idle: float) -> bool:
        """Prepare some of the next occurrences. Nothing is due for ``idle`` seconds.

        Returns:
            True if there may be more to prepare at once.
        """
        elapsed, now = self._parts.clock.elapsed, self._parts.time.now()
        until = elapsed() + min(_SLICE, idle - _SPARE)
        if elapsed() >= until or elapsed() < self._rest_until:
            return False
        if self._is_full():
            for found in [found for found in self._found.values() if not found.state.ticket]:
                # Its entry was deleted, or read again.
                self._remove(found.state.id)
        refreshed = False
        with gc_paused():
            while not self._is_full():
                state = queue.take_upcoming(now + _AHEAD)
                if state is None:
                    return False
                if not refreshed:
                    if elapsed() >= self._read_until or dispatcher.recipes is not self._recipes:
                        self.read_recipes(dispatcher)
                    refreshed = True
                began = elapsed()
                self._prepare(term, state, dispatcher, now)
                self._parts.pace.progress()
                ended = elapsed()
                if ended - began > _SLOW:
                    self._rest_until = ended + _REST
                    return False
                if ended >= until:
                    return True
        return False

    def take(
        self, writer: LedgerWriter, state: EntryState, decision: Decision, dispatcher: Dispatcher
    ) -> EntryOperation | None:
        """Return the prepared operation of an entry that is due, if it is just what is to be enqueued."""
        found = self._remove(state.id)
        if found is None:
            return None
        return found.stamped(writer.ms) if found.is_for(writer, state, decision, dispatcher) else None

    def _is_full(self) -> bool:
        return len(self._found) >= _MOST or self._characters >= _MOST_CHARACTERS

    def _remove(self, entry_id: str) -> _Prepared | None:
        found = self._found.pop(entry_id, None)
        self._characters -= found.size if found is not None else 0
        return found

    def _prepare(self, term: Term, state: EntryState, dispatcher: Dispatcher, now: datetime) -> None:
        entry, at = state.entry, state.due_at
        self._remove(state.id)
        if at is None or at <= now or not _is_regular(state):
            return
        if _has_large_arguments(entry.celery_entry):
            return
        recipe = dispatcher.recipes.of(entry.celery_entry)
        if recipe is None or len(recipe[1]) > _LARGEST or self._not_ahead.get(state.id) == recipe:
            return
        if self._parts.kept.find(entry, dispatcher) is not None or state.id in self._parts.pause.entries:
            return
        try:
            if at != state.next_due():
                return
            operation = self._operation(LedgerWriter(term, at), state, at, dispatcher)
            packed = dispatcher.pack(operation.operation).split(_STAMP.encode())
        except _DependsOnBrokerError:
            if len(self._not_ahead) >= _MOST:
                # Most may be of deleted entries.
                self._not_ahead.clear()
            self._not_ahead[state.id] = recipe
            return
        except Exception:
            # The present path reports it when the entry is due.
            return
        if len(packed) not in {1, 2 + len(operation.operation.records)}:
            return
        size = sum(map(len, packed)) + operation.operation.size
        parts = packed if len(packed) > 1 else []
        next_at = following(state, at)
        self._found[state.id] = _Prepared(state, entry, state.row, dispatcher, recipe, next_at, operation, parts, size)
        self._characters += size

    def _operation(
        self, writer: LedgerWriter, state: EntryState, at: datetime, dispatcher: Dispatcher
    ) -> EntryOperation:
        """Return the operation with :data:`_STAMP` for its time."""
        args, kwargs, options = self._parts.source.arguments(state.entry)

        def build(header: Mapping[str, Any], task_id: str) -> PreparedMessage:
            options_now = with_header(options, header, task_id)
            message = dispatcher.prepare_ahead(state.entry.celery_entry, args, kwargs, options_now)
            if message is None:
                raise _DependsOnBrokerError
            return message

        made = writer.enqueue(state, Decision(at, at), self._parts.cluster, build)
        # These are the first of such fields: texts of the project are quoted, and come later in a row.
        raw = made.row.raw.replace(f'"ms":{writer.ms},', f'"ms":{_STAMP},', 1)
        records = [
            record.replace(f'"ms": {writer.ms}, "epoch"', f'"ms": {_STAMP}, "epoch"', 1)
            for record in made.operation.records
        ]
        operation = replace(made.operation, row=raw, records=tuple(records))
        return replace(made, operation=operation, row=replace(made.row, raw=raw))


def _complete(target: object, **values: Any) -> None:
    """Set fields of a frozen object that nothing else refers to yet. A copy of each would take longer than the rest."""
    for name, value in values.items():
        object.__setattr__(target, name, value)


class _DependsOnBrokerError(Exception):
    """The message depends on what the broker has at the instant."""


def _has_large_arguments(celery_entry: Any) -> bool:
    """True if the recipe would take long."""
    try:
        return is_larger((celery_entry.args, celery_entry.kwargs), _LARGEST)
    except Exception:
        # As in the recipe: something else than an entry should have.
        return True


def _is_regular(state: EntryState) -> bool:
    """True if nothing but the schedule decides when the entry's next occurrence is enqueued, and as which run."""
    return not (
        state.resend
        or state.resumed
        or state.owed is not None
        or state.failure is not None
        or state.entry.recurrence is None
        or state.entry.celery_entry is None
    )
