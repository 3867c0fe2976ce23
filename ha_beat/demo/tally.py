"""Tally of runs, duplicates, misses and takeovers, from histories alone.

Pure: no I/O and no clock. Instants are integers since 1970 in UTC, in microseconds (``_us``) or milliseconds
(``_ms``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise

from ha_beat.clock import to_micros
from ha_beat.reasons import SkipReason, Verdict
from ha_beat.store.journal import VerdictRecord

#: Distance from the grid of due instants that still counts as on the grid.
TOLERANCE_US = 1_000


class FaultKind(StrEnum):
    """Fault of the leader."""

    KILL = "kill"
    PAUSE = "pause"
    STOP = "stop"

    @property
    def past_tense(self) -> str:
        """Return the past tense, as in "killed beat-1"."""
        return {"kill": "killed", "pause": "paused", "stop": "stopped"}[self.value]

    @property
    def signal_name(self) -> str:
        return {"kill": "SIGKILL", "pause": "SIGSTOP", "stop": "SIGTERM"}[self.value]


@dataclass(frozen=True, slots=True)
class Run:
    """Message that the worker ran."""

    entry: str
    scheduled_us: int
    task_id: str
    epoch: int
    worker: str
    ran_us: int

    @property
    def late_s(self) -> float:
        """Return the seconds from the due instant to the run."""
        return (self.ran_us - self.scheduled_us) / 1e6


@dataclass(frozen=True, slots=True)
class Fault:
    kind: FaultKind
    replica: str
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Leader:
    epoch: int
    replica: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Takeover:
    """Change of leader. A duration is None while it is unknown."""

    epoch: int
    replica: str
    before: str
    cause: FaultKind | None
    #: From the fault to the new leader's lease; None if no fault was injected.
    led_after_s: float | None
    #: From the last message under the old epoch to the first under the new one.
    silence_s: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    #: Occurrences that the worker ran at least once.
    arrived: int
    #: Runs of an occurrence beyond its first.
    duplicates: int
    #: Occurrences that fell due and never ran, without a verdict in the journal.
    missed: int
    #: Occurrences that the misfire policy replaced by a later one.
    coalesced: int
    #: Occurrences skipped for another reason.
    skipped: int
    #: Runs whose instant is not on the grid of the entry's interval.
    off_grid: int
    takeovers: int

    @property
    def sound(self) -> bool:
        """True if each occurrence ran once or was coalesced."""
        return not (self.duplicates or self.missed or self.skipped or self.off_grid)


@dataclass(slots=True)
class _Entry:
    interval_us: int
    runs: Counter[int] = field(default_factory=Counter)
    skips: list[VerdictRecord] = field(default_factory=list)

    def skip_at(self, instant_us: int) -> VerdictRecord | None:
        for skip in reversed(self.skips):
            if to_micros(skip.first) - TOLERANCE_US <= instant_us < to_micros(skip.until):
                return skip
        return None

    def holes(self, since_us: int | None, until_us: int | None) -> Iterator[int]:
        """Yield the due instants without a run."""
        instants = sorted(self.runs)
        for before, after in pairwise(instants):
            steps = self._steps(before, after)
            yield from (before + step * self.interval_us for step in range(1, steps))
        last = instants[-1] if instants else since_us
        if until_us is not None and last is not None:
            yield from range(last + self.interval_us, until_us + 1, self.interval_us)

    def off_grid(self) -> int:
        instants = sorted(self.runs)
        return sum(
            abs(after - before - self._steps(before, after) * self.interval_us) > TOLERANCE_US
            or self._steps(before, after) == 0
            for before, after in pairwise(instants)
        )

    def _steps(self, before_us: int, after_us: int) -> int:
        return round((after_us - before_us) / self.interval_us)


class Tally:
    """Counter of what happened, in any order of arrival.

    ``intervals_us`` names the schedule's entries with the interval of each, in microseconds.
    """

    def __init__(self, intervals_us: Mapping[str, int]) -> None:
        self._entries = {name: _Entry(interval) for name, interval in intervals_us.items()}
        self._faults: list[Fault] = []
        self._takeovers: list[Takeover] = []
        #: The latest leader.
        self.leader: Leader | None = None
        self._first_ms: dict[int, int] = {}
        self._last_ms: dict[int, int] = {}

    def add_run(self, run: Run) -> bool:
        """Add a run; return True if it is a duplicate."""
        entry = self._entries[run.entry]
        entry.runs[run.scheduled_us] += 1
        return entry.runs[run.scheduled_us] > 1

    def add_verdict(self, record: VerdictRecord) -> None:
        if record.verdict is Verdict.SKIPPED:
            if record.entry in self._entries:
                self._entries[record.entry].skips.append(record)
        elif record.verdict is Verdict.ENQUEUED:
            epoch, written = record.epoch, record.ms
            self._first_ms[epoch] = min(written, self._first_ms.get(epoch, written))
            self._last_ms[epoch] = max(written, self._last_ms.get(epoch, written))

    def add_fault(self, fault: Fault) -> None:
        self._faults.append(fault)

    def add_leader(self, leader: Leader) -> None:
        """Add the current leader. If it is another than before, that was a takeover."""
        before = self.leader
        if before is not None and leader.epoch <= before.epoch:
            return
        self.leader = leader
        if before is None:
            return
        fault = next((fault for fault in reversed(self._faults) if fault.epoch == before.epoch), None)
        takeover = Takeover(
            epoch=leader.epoch,
            replica=leader.replica,
            before=before.replica,
            cause=fault.kind if fault else None,
            led_after_s=max(0, leader.since_ms - fault.at_ms) / 1000 if fault else None,
        )
        self._takeovers.append(takeover)

    def enqueued_under(self, epoch: int | None = None) -> bool:
        """True if a message was enqueued under this epoch, or under any."""
        return bool(self._first_ms) if epoch is None else epoch in self._first_ms

    def takeovers(self) -> list[Takeover]:
        """Return all takeovers, oldest first, with the silence if both its ends are known."""
        return [replace(takeover, silence_s=self._silence(takeover.epoch)) for takeover in self._takeovers]

    def behind(self, since_us: int, until_us: int) -> bool:
        """True if an occurrence that fell due from ``since_us`` to ``until_us`` has not run, and no later one has."""
        return any(
            max(entry.runs, default=since_us) + entry.interval_us <= until_us for entry in self._entries.values()
        )

    def counts(self, *, since_us: int | None = None, until_us: int | None = None) -> Counts:
        """Return the counts. Occurrences after the last run count as missed if they fell due up to ``until_us``.

        ``since_us`` stands for the last run of an entry that never ran.
        """
        missed = coalesced = skipped = 0
        for entry in self._entries.values():
            for instant in entry.holes(since_us, until_us):
                skip = entry.skip_at(instant)
                if skip is None:
                    missed += 1
                elif skip.reason == SkipReason.COALESCED:
                    coalesced += 1
                else:
                    skipped += 1
        return Counts(
            arrived=sum(len(entry.runs) for entry in self._entries.values()),
            duplicates=sum(entry.runs.total() - len(entry.runs) for entry in self._entries.values()),
            missed=missed,
            coalesced=coalesced,
            skipped=skipped,
            off_grid=sum(entry.off_grid() for entry in self._entries.values()),
            takeovers=len(self._takeovers),
        )

    def _silence(self, epoch: int) -> float | None:
        first = self._first_ms.get(epoch)
        before = [last for earlier, last in self._last_ms.items() if earlier < epoch]
        if first is None or not before:
            return None
        return max(0, first - max(before)) / 1000
