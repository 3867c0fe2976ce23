"""Schedule of one term as it is loaded: the due queue, the rows to write first, and the entries still to be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from itertools import islice

from ha_beat.clock import Clock
from ha_beat.dispatch import Dispatcher
from ha_beat.errors import StoreError
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.gc_pause import gc_paused, return_free_memory
from ha_beat.leader.ledger_writer import EntryOperation
from ha_beat.leader.loading.entry_loader import in_batches, keep_deadlines
from ha_beat.leader.loading.gradual_load import PART, PART_BUDGET, GradualLoad
from ha_beat.leader.loading.schedule_loader import ScheduleLoader
from ha_beat.leader.planner import EVERYTHING, ScheduleChange
from ha_beat.store.lease import Term


class LoadedSchedule:
    """Entries in use, and the order in which others are read. Used by the main loop only."""

    def __init__(self, loader: ScheduleLoader, clock: Clock) -> None:
        self._loader = loader
        self._clock = clock
        self.queue = DueQueue()
        #: Batches that come before due entries: the rows that the ledger needs first, and the single operations of a
        #: batch that failed as a whole.
        self.first: deque[Sequence[EntryOperation]] = deque()
        #: Operations of the reconciliation that wait until the entry's claimed occurrence was sent again, by entry.
        self.after_resend: dict[str, EntryOperation] = {}
        #: True if the schedule, or its first part, was read in this term.
        self.loaded = False
        #: True if some entries wait until the schedule is read under this term.
        self.awaits_read = False
        #: Load whose parts are not all in the queue yet.
        self._load: GradualLoad | None = None
        #: True if all entries must be loaded once more, after the :attr:`_load`. So each load comes to its end.
        self._again = False
        #: True if the next load must be of all entries in one part.
        self._at_once = False
        #: Entries whose change is not in the queue yet.
        self._changed: set[str] = set()

    @property
    def complete(self) -> bool:
        """True if the queue holds all entries, although some may be read again."""
        return self.loaded and (self._load is None or self._load.reloads or self._load.all_loaded)

    @property
    def up_to_date(self) -> bool:
        """True if the queue holds all entries, and nothing is to be read."""
        return not self.must_read and self._load is None

    @property
    def must_read(self) -> bool:
        """True if an entry must be read before the next batch."""
        return not self.loaded or bool(self._changed)

    def reload(self, change: ScheduleChange = EVERYTHING) -> None:
        """Read what has changed of the schedule, and its rows in the ledger, before the next batch."""
        if change.ids is not None:
            self._changed |= change.ids
        elif self._load is not None:
            self._again = True
        else:
            self.loaded = False

    def read_again(self, ids: Set[str]) -> None:
        """Read these rows before anything else is written for their entries."""
        self._changed |= ids
        left = ([each for each in batch if each.state.id not in ids] for batch in self.first)
        self.first = deque(batch for batch in left if batch)

    def unload(self) -> None:
        """Discard the queue, so that its entries are not reported as overdue."""
        self.queue, self.loaded, self._load = DueQueue(), False, None

    def load(self, term: Term, dispatcher: Dispatcher) -> None:
        """Fill the queue: each entry at its position by the ledger. Begin to load a large schedule in parts.

        Raises:
            FencedOff: the term is over.
            StoreError: the ledger could not be read.
        """
        with gc_paused():
            found = self._loader.load(term, dispatcher, self.queue, at_once=self._at_once)
        if isinstance(found, GradualLoad):
            self._load = found
        else:
            keep_deadlines(self.queue.entries(), found.queue)
            self.queue, self.first = found.queue, found.first
            self.after_resend, self.awaits_read = found.after_resend, found.awaits_read
            self._load, self._changed = None, set()
        self.loaded = True
        self._again = self._at_once = False

    def load_more(self, term: Term, dispatcher: Dispatcher) -> None:
        """Load a part of what has changed or is missing in the queue, and delete old rows.

        Raises:
            StoreError: the ledger could not be read.
        """
        if self._changed:
            self._load_changed(term, dispatcher)
        elif self._load is not None:
            self._load_parts(term, self._load)
            if self.up_to_date:
                # Not earlier, because the load itself uses most of this memory.
                return_free_memory()
        else:
            self.first = self._loader.drop_old_rows(term, dispatcher, self.queue)

    def release_after_resend(self) -> None:
        """Submit next the operations whose entries' claimed occurrences have a verdict by now."""
        released = [each for each in self.after_resend.values() if not each.state.resend]
        if released:
            self.after_resend = {each.state.id: each for each in self.after_resend.values() if each.state.resend}
            self.first.append([each.after(each.state.expected) for each in released])

    def _load_changed(self, term: Term, dispatcher: Dispatcher) -> None:
        """Bring some of the changed entries up to date, or load all entries if claims are sent again."""
        ids = set(islice(self._changed, PART))
        last = len(ids) == len(self._changed)
        found = None if self.after_resend else self._loader.load_changed(term, dispatcher, ids, self.queue, last=last)
        if found is None:
            self._load_at_once()
            return
        self.first = in_batches(found.operations)
        self.awaits_read |= found.awaits_read
        if self._load is not None:
            self._load.note_loaded(ids, awaits_read=found.awaits_read)
        self._changed -= ids

    def _load_parts(self, term: Term, load: GradualLoad) -> None:
        until = self._clock.elapsed() + PART_BUDGET
        while not self.first and not load.finished:
            try:
                with gc_paused():
                    first = load.load_part(term, self.queue)
            except StoreError:
                raise
            except Exception:
                # The iterator over the schedule may have ended with this exception.
                self._load_at_once()
                raise
            if first is None:
                self._load_at_once()
                return
            self.first = first
            self.awaits_read = load.awaits_read or (self.awaits_read and not load.finished)
            if self._clock.elapsed() >= until:
                break
        if load.finished:
            self._load = None
            if self._again:
                self.loaded = False

    def _load_at_once(self) -> None:
        self.loaded, self._load, self._at_once = False, None, True
