"""Due queue: the leader's entries in order of due time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from ha_beat.leader.entry import EntryState
from ha_beat.schedule.occurrence import NEVER

#: Number of places of dropped entries that are kept in any case.
_FEW = 64

#: Time for which entries of a burst may wait before entries that fall due later go first.
_LONG_WAIT = timedelta(seconds=0.05)

#: Most places that are set aside in one call, which takes some milliseconds.
_SET_ASIDE = 2000

_Place = tuple[datetime, int, EntryState]


@dataclass(slots=True)
class DueQueue:
    """Heap of entries by due time. Only :meth:`entries` and :meth:`backlog` visit every entry."""

    _heap: list[_Place] = field(default_factory=list)
    #: The same places, without those that :meth:`take_upcoming` has returned.
    _ahead: list[_Place] = field(default_factory=list)
    #: Places that :meth:`pop_due` has taken from the heap, because entries of a burst wait, and the burst's instant.
    _aside: deque[_Place] = field(default_factory=deque)
    _aside_at: datetime = NEVER
    _by_id: dict[str, EntryState] = field(default_factory=dict)
    #: Entries without a place at their own time, by id: they are being dispatched, or must wait longer.
    _elsewhere: dict[str, EntryState] = field(default_factory=dict)
    _tickets: int = 0
    _longest_first: bool = False
    #: Alternates, so that later entries get every other batch if a batch has one place.
    _odd: bool = False

    def __len__(self) -> int:
        return len(self._by_id)

    def entries(self) -> Iterable[EntryState]:
        """Return all entries, including one that is being dispatched."""
        return self._by_id.values()

    def get(self, entry_id: str) -> EntryState | None:
        """Return the entry of this id."""
        return self._by_id.get(entry_id)

    def put(
        self,
        state: EntryState,
        due_at: datetime,
        not_before: datetime | None = None,
        *,
        sends_at: datetime | None = None,
    ) -> None:
        """Add an entry or put it back. It is popped when it is due, and not before ``not_before`` and ``sends_at``.

        It counts as overdue from ``sends_at`` on. By default, an entry with the same instant keeps its ``sends_at``.
        """
        self._by_id[state.id] = state
        kept = state.sends_at if state.due_at == due_at else None
        state.due_at, state.sends_at = due_at, sends_at or kept or due_at
        self._tickets += 1
        state.ticket = self._tickets
        place = max(state.sends_at, not_before or due_at), self._tickets, state
        heapq.heappush(self._heap, place)
        heapq.heappush(self._ahead, place)
        if place[0] > state.sends_at:
            self._elsewhere[state.id] = state
        else:
            self._elsewhere.pop(state.id, None)
        self._compact()

    def drop(self, state: EntryState) -> None:
        """Remove an entry."""
        state.ticket = 0
        if self._by_id.get(state.id) is state:
            del self._by_id[state.id]
            self._elsewhere.pop(state.id, None)
        self._compact()

    def _compact(self) -> None:
        """Remove the places of dropped entries, which otherwise stay until they are due, once they are the majority."""
        most = 2 * len(self._by_id) + _FEW
        if len(self._heap) > most:
            self._heap = [place for place in self._heap if place[1] == place[2].ticket]
            heapq.heapify(self._heap)
        if len(self._ahead) > most:
            self._ahead = [place for place in self._ahead if place[1] == place[2].ticket]
            heapq.heapify(self._ahead)

    def pop_due(self, now: datetime, limit: int) -> list[EntryState]:
        """Pop up to ``limit`` due entries in order of due time.

        While more than ``limit`` entries of one instant wait, later entries go first and may take half of the places.
        """
        self._set_aside(now)
        aside, crowded = self._aside, len(self._aside) > limit
        later = crowded and not (self._heap and self._heap[0][0] <= self._aside_at)
        self._odd = later and not self._odd
        due = list(self._from_heap(now, (limit + self._odd) // 2)) if later else []
        while aside and len(due) < limit:
            _, ticket, state = aside.popleft()
            if state.ticket == ticket:
                self._elsewhere[state.id] = state
                due.append(state)
        due.extend(self._from_heap(now, limit - len(due)))
        return due

    def _set_aside(self, now: datetime) -> None:
        heap = self._heap
        if self._aside and self._aside_at > now:
            # The time was set back, so other entries may be due before the burst.
            heap.extend(self._aside)
            heapq.heapify(heap)
            self._aside.clear()
        if not self._aside:
            if not heap or now - heap[0][0] < _LONG_WAIT:
                return
            self._aside_at = heap[0][0]
        for _ in range(_SET_ASIDE):
            if not heap or heap[0][0] > self._aside_at:
                return
            self._aside.append(heapq.heappop(heap))

    def _from_heap(self, now: datetime, limit: int) -> Iterator[EntryState]:
        while limit and self._heap and self._heap[0][0] <= now:
            _, ticket, state = heapq.heappop(self._heap)
            if state.ticket == ticket:
                limit -= 1
                self._elsewhere[state.id] = state
                yield state

    def take_upcoming(self, until: datetime) -> EntryState | None:
        """Return the next entry that is due by ``until``, each place once. The entry stays in the queue."""
        while self._ahead and self._ahead[0][0] <= until:
            _, ticket, state = heapq.heappop(self._ahead)
            if state.ticket == ticket:
                return state
        return None

    def put_after_newer(self, due_until: datetime, now: datetime) -> None:
        """Put the entries that were due by ``due_until`` after those that fell due since, up to ``now``.

        In every other call, the entry that has waited longest goes first, because the others may fill each batch.
        """
        due = self.pop_due(due_until, len(self._heap) + len(self._aside))
        self._longest_first = not self._longest_first
        first = min(due, key=_waiting_since, default=None) if self._longest_first else None
        for state in due:
            self.put(state, state.due_at or now, None if state is first else now)

    def next_due(self) -> datetime | None:
        """Return the time at which the next entry can be popped; ``None`` if the queue is empty."""
        places = self._aside or self._heap
        return places[0][0] if places else None

    def upcoming(self, limit: int) -> list[tuple[datetime, EntryState]]:
        """Return the next entries in order of due time. Any thread may call it."""
        heap = self._heap.copy()
        elsewhere = {state for state in list(self._elsewhere.values()) if state.sends_at is not None}
        found = [(state.sends_at or NEVER, state.ticket, state) for state in elsewhere]
        found += islice((place for place in self._aside.copy() if _in_place(place, elsewhere)), limit)
        most = len(found) + limit
        while heap and len(found) < most:
            place = heapq.heappop(heap)
            if _in_place(place, elsewhere):
                found.append(place)
        return [(at, state) for at, _, state in heapq.nsmallest(limit, found, key=lambda place: place[:2])]

    def overdue(self, now: datetime) -> float:
        """Return for how many seconds the longest waiting entry has been due, even if it is retried only later."""
        return max((0.0, *((now - at).total_seconds() for at, _ in self.upcoming(1))))

    def backlog(self, now: datetime) -> int:
        """Return how many entries are due. Any thread may call it."""
        soonest, aside = self._heap[:1], self._aside.copy()
        heap = self._heap.copy() if soonest and soonest[0][0] <= now else []
        return sum(1 for at, ticket, state in (*aside, *heap) if at <= now and state.ticket == ticket)


def _in_place(place: _Place, elsewhere: Container[EntryState]) -> bool:
    """True if an entry is still at this place of the queue."""
    return place[1] == place[2].ticket and place[2] not in elsewhere


def _waiting_since(state: EntryState) -> datetime:
    """Return since when an entry waits: for an instant of a backlog, since the entry was last tried."""
    return max(state.due_at or NEVER, state.tried_at)
