"""Arguments that take long to compute, such as a query in a ``BeatLazyFunc``.

The main loop computes the arguments of an entry. If that takes long, a thread does it from the next time on, while the
main loop serves other entries. Otherwise arguments that take longer than ``stall_timeout`` would end one term after the
other. A thread always computes the arguments of a message that is sent on request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ha_beat.clock import Clock
from ha_beat.dispatch.messages.build import entry_code
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.kept_messages import definition_of, same_definition

Arguments = tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]

#: Most threads at the same time. Other slow entries wait.
_MOST_THREADS = 4

#: Seconds after which a thread counts as hung, and the most hung threads, in addition to the others.
_HUNG, _MOST_HUNG = 60.0, 28

#: Seconds after which a hung computation is replaced by another, and the most threads of one entry.
_LOST, _MOST_PER_ENTRY = 600.0, 2

#: Seconds for which computed arguments can be used. This replica may lose the lease before it uses them.
_FRESH = 60.0


class _State(Enum):
    """State of a computation: usable, under way, under way for too long, or too old or of another definition."""

    FRESH = auto()
    UNDER_WAY = auto()
    LOST = auto()
    OUTDATED = auto()


@dataclass(slots=True)
class _Computation:
    """Computation of an entry's arguments in a thread. The thread sets ``finished_at`` last."""

    entry: ScheduledEntry
    definition: Any
    began_at: float
    result: Arguments | None = None
    error: BaseException | None = None
    finished_at: float | None = None
    took: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    def state(self, definition: Any, now: float) -> _State:
        """Return the state for an entry with this definition."""
        if not same_definition(self.definition, definition):
            return _State.OUTDATED
        if self.finished_at is None:
            return _State.UNDER_WAY if now - self.began_at < _LOST else _State.LOST
        return _State.FRESH if now - self.finished_at <= _FRESH else _State.OUTDATED


class SlowArguments:
    """Computer of arguments that remembers which entries are slow, over the terms of a replica.

    Used by the main loop only. ``limit`` is how many seconds the arguments of an entry may take there.
    """

    def __init__(self, compute: Callable[[ScheduledEntry], Arguments], clock: Clock, limit: float) -> None:
        self._compute = compute
        self._clock = clock
        self._limit = limit
        #: Ids of slow entries.
        self._slow: set[str] = set()
        self._running: dict[str, _Computation] = {}
        #: Computations whose thread may still run, also those of earlier definitions.
        self._started: list[_Computation] = []
        #: Since when an entry waits for its arguments, on ``Clock.elapsed``.
        self._waiting_since: dict[str, float] = {}

    def ready(self, entry: ScheduledEntry) -> bool:
        """True if :meth:`take` can be called. Otherwise start to compute the arguments, and ask again later."""
        if entry.id not in self._slow:
            return True
        found, definition, now = self._running.get(entry.id), definition_of(entry), self._clock.elapsed()
        match found.state(definition, now) if found is not None else _State.OUTDATED:
            case _State.FRESH:
                return True
            case _State.UNDER_WAY:
                return False
            case _State.OUTDATED if found is not None:
                self._waiting_since.pop(entry.id, None)
        self._waiting_since.setdefault(entry.id, now)
        if self._has_room(entry.id):
            started = self._running[entry.id] = _Computation(entry, definition, now)
            self._started.append(started)
            threading.Thread(target=self._run, args=(started,), name="ha_beat-arguments", daemon=True).start()
        return False

    def ready_within(self, entry: ScheduledEntry, seconds: float) -> bool:
        """As :meth:`ready`, but always use a thread. The call that starts the computation waits for ``seconds``."""
        self._slow.add(entry.id)
        first = entry.id not in self._running
        if self.ready(entry):
            return True
        return first and entry.id in self._running and self._running[entry.id].done.wait(seconds)

    def overdue(self, entry_id: str) -> bool:
        """True if the entry has waited so long for its arguments that they may never come."""
        since = self._waiting_since.get(entry_id)
        return since is not None and self._clock.elapsed() - since >= _HUNG

    @entry_code()
    def take(self, entry: ScheduledEntry) -> tuple[Arguments, bool]:
        """Return the arguments, and True if the entry is slow for the first time.

        Raises:
            Exception: any exception of the entry's code.
        """
        if entry.id not in self._slow:
            began = self._clock.elapsed()
            try:
                return self._compute(entry), self._note(entry.id, self._clock.elapsed() - began)
            except BaseException:
                self._note(entry.id, self._clock.elapsed() - began)
                raise
        found = self._running.pop(entry.id)
        self._waiting_since.pop(entry.id, None)
        self._note(entry.id, found.took)
        if found.error is not None or found.result is None:
            raise found.error or RuntimeError("the computation of the arguments has not finished")
        return found.result, False

    def _has_room(self, entry_id: str) -> bool:
        """True if another thread may be started for the entry."""
        now = self._clock.elapsed()
        self._started = [each for each in self._started if each.finished_at is None]
        if sum(each.entry.id == entry_id for each in self._started) >= _MOST_PER_ENTRY:
            return False
        hung = sum(now - each.began_at >= _HUNG for each in self._started)
        return hung < _MOST_HUNG and len(self._started) - hung < _MOST_THREADS

    def _note(self, entry_id: str, seconds: float) -> bool:
        """Note how long an entry took. Return True if it is slow now and was not before."""
        was_slow = entry_id in self._slow
        if seconds < self._limit:
            self._slow.discard(entry_id)
            return False
        self._slow.add(entry_id)
        return not was_slow

    def _run(self, computation: _Computation) -> None:
        began = self._clock.elapsed()
        try:
            computation.result = self._compute(computation.entry)
        except BaseException as exc:
            computation.error = exc
        ended = self._clock.elapsed()
        computation.took, computation.finished_at = ended - began, ended
        computation.done.set()
