"""Occurrences that are prepared ahead, while the main loop has nothing else to do.

When many entries are due at the same instant, most of the time goes into messages, rows and records. The leader
therefore prepares the occurrences of the next seconds, as if each were enqueued on time and alone. At the instant, the
entry is decided on as usual. If anything differs from what was expected, the prepared occurrence is discarded and a new
one is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ha_beat.dispatch import Dispatcher, PreparedMessage
from ha_beat.dispatch.messages.recipe import Recipe
from ha_beat.dispatch.messages.size import is_larger
from ha_beat.headers import with_header
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.gc_pause import gc_paused
from ha_beat.leader.ledger_writer import OPEN_TIME, EntryOperation, LedgerWriter, following
from ha_beat.leader.parts import LeaderParts
from ha_beat.schedule.misfire import Decision
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: How far ahead occurrences are prepared.
_AHEAD = timedelta(seconds=30)

#: Most prepared occurrences, and most characters of them.
_MOST, _MOST_CHARACTERS = 20_000, 64_000_000

#: Most bytes of an entry's arguments and options. Such a message is built within ``_SPARE``, and delays no entry.
_LARGEST = 100_000

#: Seconds for which the main loop prepares in one turn, and the least time until the next entry is due.
_SLICE, _SPARE = 0.01, 0.03

#: Longest time in seconds that a message may take to build, and the pause after one that took longer.
_SLOW, _REST = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Occurrence that is complete except for the time of its submission, and everything that it was built from.

    ``packed`` are the parts of its packed form, with the time between them; empty if it has none. ``size`` is the
    number of its characters.
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
        """True if an operation that is built now would be the same."""
        row = self.operation.row
        return (
            _is_regular(state)
            and self.state is state
            and self.entry is state.entry  # guard: prepared-same-entry
            and self.before is state.row  # guard: prepared-same-row
            and self.dispatcher is dispatcher
            and len(str(writer.ms)) == len(OPEN_TIME)
            and (row.epoch, row.nonce) == (writer.term.epoch, writer.term.nonce)  # guard: prepared-same-term
            and decision == self.operation.decision  # guard: prepared-same-decision
            and following(state, row.base) == self.following
            and dispatcher.recipes.of(state.entry.celery_entry) == self.recipe  # guard: prepared-same-recipe
        )


class PreparedOccurrences:
    """Prepared occurrences of one term, at most one of each entry. Used by the main loop only."""

    def __init__(self, parts: LeaderParts) -> None:
        self._parts = parts
        self._found: dict[str, _Prepared] = {}
        self._characters = 0
        #: Recipes of messages that depend on the broker's state at the instant, by entry.
        self._not_ahead: dict[str, Recipe] = {}
        #: Time of ``Clock.elapsed`` before which nothing is prepared.
        self._rest_until = 0.0
        #: Recipes that were read last, and until when they are recent.
        self._recipes: object = None
        self._read_until = 0.0

    def __len__(self) -> int:
        return len(self._found)

    def read_recipes(self, dispatcher: Dispatcher) -> None:
        """Read what all messages have in common. :meth:`prepare` uses it for a slice before it reads again."""
        dispatcher.recipes.refresh()
        self._recipes, self._read_until = dispatcher.recipes, self._parts.clock.elapsed() + _SLICE

    def clear(self) -> None:
        """Discard all prepared occurrences."""
        self._found.clear()
        self._not_ahead.clear()
        self._characters = 0

    def prepare(self, term: Term, queue: DueQueue, dispatcher: Dispatcher, idle: float) -> bool:
        """Prepare some of the next occurrences. Nothing is due for ``idle`` seconds.

        Returns:
            True if there may be more to prepare now.
        """
        elapsed, now = self._parts.clock.elapsed, self._parts.time.now()
        until = elapsed() + min(_SLICE, idle - _SPARE)
        if elapsed() >= until or elapsed() < self._rest_until:
            return False
        if self._is_full():
            self._remove_dropped()
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
        """Return the prepared operation of a due entry, if it equals one that is built now."""
        found = self._remove(state.id)
        if found is None or not found.is_for(writer, state, decision, dispatcher):
            return None
        found.operation.set_time(writer.ms, found.packed)
        return found.operation

    def _is_full(self) -> bool:
        return len(self._found) >= _MOST or self._characters >= _MOST_CHARACTERS

    def _remove_dropped(self) -> None:
        """Remove the occurrences of entries that were deleted or read again."""
        for found in [found for found in self._found.values() if not found.state.ticket]:
            self._remove(found.state.id)

    def _remove(self, entry_id: str) -> _Prepared | None:
        found = self._found.pop(entry_id, None)
        self._characters -= found.size if found is not None else 0
        return found

    def _prepare(self, term: Term, state: EntryState, dispatcher: Dispatcher, now: datetime) -> None:
        """Prepare the next occurrence of an entry, if that is possible."""
        self._remove(state.id)
        at = state.due_at
        if at is None or at <= now or not _is_regular(state):
            return
        recipe = self._recipe(state, dispatcher)
        if recipe is None:
            return
        try:
            prepared = self._prepared(LedgerWriter(term, at), state, at, recipe, dispatcher)
        except _DependsOnBrokerError:
            if len(self._not_ahead) >= _MOST:
                # Most may be of deleted entries.
                self._not_ahead.clear()
            self._not_ahead[state.id] = recipe
        except Exception:
            # Reported when the entry is due and its message is built again.
            return
        else:
            if prepared is not None:
                self._found[state.id] = prepared
                self._characters += prepared.size

    def _recipe(self, state: EntryState, dispatcher: Dispatcher) -> Recipe | None:
        """Return the recipe of an entry's next message, or ``None`` if the message cannot be built ahead."""
        celery_entry = state.entry.celery_entry
        if _has_large_arguments(celery_entry):
            return None
        recipe = dispatcher.recipes.of(celery_entry)
        if recipe is None or len(recipe[1]) > _LARGEST or self._not_ahead.get(state.id) == recipe:
            return None
        if self._parts.kept.find(state.entry, dispatcher) is not None or state.id in self._parts.pause.entries:
            return None
        return recipe

    def _prepared(
        self, writer: LedgerWriter, state: EntryState, at: datetime, recipe: Recipe, dispatcher: Dispatcher
    ) -> _Prepared | None:
        """Return the occurrence due ``at``, or ``None`` if it cannot be prepared."""
        if at != state.next_due():
            return None
        args, kwargs, options = self._parts.source.arguments(state.entry)

        def build(header: Mapping[str, Any], task_id: str) -> PreparedMessage:
            options_now = with_header(options, header, task_id)
            message = dispatcher.prepare_ahead(state.entry.celery_entry, args, kwargs, options_now)
            if message is None:
                raise _DependsOnBrokerError
            return message

        built = writer.enqueue(state, Decision(at, at), self._parts.cluster, build).with_open_time()
        packed = dispatcher.pack(built.operation).split(OPEN_TIME.encode())
        if len(packed) == 1:
            packed = []
        elif len(packed) != 2 + len(built.operation.records):
            # The message contains the placeholder, too.
            return None
        size, next_at = sum(map(len, packed)) + built.operation.size, following(state, at)
        return _Prepared(state, state.entry, state.row, dispatcher, recipe, next_at, built, packed, size)


class _DependsOnBrokerError(Exception):
    """The message depends on the broker's state at the instant."""


def _has_large_arguments(celery_entry: Any) -> bool:
    """True if reading the recipe would take long."""
    try:
        return is_larger((celery_entry.args, celery_entry.kwargs), _LARGEST)
    except Exception:
        # Attributes of another type than an entry has, which have no recipe either.
        return True


def _is_regular(state: EntryState) -> bool:
    """True if only the schedule decides when the entry's next occurrence is enqueued, and as which run."""
    return not (
        state.resend
        or state.resumed
        or state.owed is not None
        or state.failure is not None
        or state.entry.recurrence is None
        or state.entry.celery_entry is None
    )
