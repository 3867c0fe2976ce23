"""Count what arrived: duplicates, misses and takeovers, from histories alone.

Pure: no I/O and no clock. Instants are integers since 1970 in UTC, in microseconds (``_us``) or milliseconds
(``_ms``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise

TOLERANCE_US = 1_000
"""How far an occurrence may lie from its entry's grid and still be on it."""


class FaultKind(StrEnum):
    """What is done to the leader."""

    KILL = "kill"
    PAUSE = "pause"
    STOP = "stop"

    @property
    def past_tense(self) -> str:
        """For a sentence such as "killed beat-1"."""
        return {"kill": "killed", "pause": "paused", "stop": "stopped"}[self.value]

    @property
    def signal_name(self) -> str:
        """The signal that brings it about."""
        return {"kill": "SIGKILL", "pause": "SIGSTOP", "stop": "SIGTERM"}[self.value]


@dataclass(frozen=True, slots=True)
class Run:
    """One message that reached the worker."""

    entry: str
    scheduled_us: int
    task_id: str
    epoch: int
    worker: str
    ran_us: int

    @property
    def late_s(self) -> float:
        """Seconds from the instant it was meant for to the instant the worker ran it."""
        return (self.ran_us - self.scheduled_us) / 1e6


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict of the journal: on the occurrences from ``first_us`` up to, not including, ``until_us``."""

    entry: str
    verdict: str
    first_us: int
    until_us: int
    reason: str
    epoch: int
    written_ms: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something done on purpose to the leader of ``epoch``."""

    kind: FaultKind
    replica: str
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Leader:
    """Who the lease says leads."""

    epoch: int
    replica: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Takeover:
    """A change of leader. The durations are None while they are not known."""

    epoch: int
    replica: str
    before: str
    cause: FaultKind | None
    led_after_s: float | None
    """From the fault to the new leader's lease; None where nobody provoked the change."""
    silence_s: float | None = None
    """From the last message under the old epoch to the first under the new one."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the histories amount to."""

    arrived: int
    """Occurrences that the worker ran at least once."""
    duplicates: int
    """Runs of an occurrence beyond its first."""
    missed: int
    """Occurrences that fell due, never ran, and of which the journal knows no reason."""
    coalesced: int
    """Occurrences that a later one stood in for, by the misfire policy."""
    skipped: int
    """Occurrences skipped for another reason."""
    off_grid: int
    """Occurrences at an instant that is not the one before plus a multiple of the interval."""
    takeovers: int

    @property
    def sound(self) -> bool:
        """Whether each occurrence ran once, or was coalesced by the misfire policy."""
        return not (self.duplicates or self.missed or self.skipped or self.off_grid)


@dataclass(slots=True)
class _Entry:
    interval_us: int
    runs: Counter[int] = field(default_factory=Counter)
    skips: list[Verdict] = field(default_factory=list)

    def skip_at(self, instant_us: int) -> Verdict | None:
        for skip in reversed(self.skips):
            if skip.first_us - TOLERANCE_US <= instant_us < skip.until_us:
                return skip
        return None

    def holes(self, tail_us: int | None, begun_us: int | None) -> Iterator[int]:
        """Yield the instants of the grid at which nothing ran."""
        instants = sorted(self.runs)
        for before, after in pairwise(instants):
            steps = self._steps(before, after)
            yield from (before + step * self.interval_us for step in range(1, steps))
        last = instants[-1] if instants else begun_us
        if tail_us is not None and last is not None:
            yield from range(last + self.interval_us, tail_us + 1, self.interval_us)

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
    """Take in what happened, in any order of arrival, and count it.

    ``intervals_us`` names the schedule's entries with the interval of each, in microseconds.
    """

    def __init__(self, intervals_us: Mapping[str, int]) -> None:
        self._entries = {name: _Entry(interval) for name, interval in intervals_us.items()}
        self._faults: list[Fault] = []
        self._takeovers: list[Takeover] = []
        self._leader: Leader | None = None
        self._first_ms: dict[int, int] = {}
        self._last_ms: dict[int, int] = {}

    def run(self, run: Run) -> bool:
        """Take in a run; return whether it is a duplicate."""
        entry = self._entries[run.entry]
        entry.runs[run.scheduled_us] += 1
        return entry.runs[run.scheduled_us] > 1

    def verdict(self, verdict: Verdict) -> None:
        """Take in a verdict of the journal."""
        if verdict.verdict == "skipped":
            if verdict.entry in self._entries:
                self._entries[verdict.entry].skips.append(verdict)
        elif verdict.verdict == "enqueued":
            epoch, written = verdict.epoch, verdict.written_ms
            self._first_ms[epoch] = min(written, self._first_ms.get(epoch, written))
            self._last_ms[epoch] = max(written, self._last_ms.get(epoch, written))

    def fault(self, fault: Fault) -> None:
        """Take in a fault that was brought about."""
        self._faults.append(fault)

    def leads(self, leader: Leader) -> Takeover | None:
        """Take in who leads; return the takeover where that is news and not the first leader."""
        before = self._leader
        if before is not None and leader.epoch <= before.epoch:
            return None
        self._leader = leader
        if before is None:
            return None
        fault = next((fault for fault in reversed(self._faults) if fault.epoch == before.epoch), None)
        takeover = Takeover(
            epoch=leader.epoch,
            replica=leader.replica,
            before=before.replica,
            cause=fault.kind if fault else None,
            led_after_s=max(0, leader.since_ms - fault.at_ms) / 1000 if fault else None,
        )
        self._takeovers.append(takeover)
        return takeover

    @property
    def leader(self) -> Leader | None:
        """Who led when last heard of."""
        return self._leader

    @property
    def first_enqueued(self) -> bool:
        """Whether anything was enqueued at all."""
        return bool(self._first_ms)

    def enqueued_under(self, epoch: int) -> bool:
        """Whether anything was enqueued under this epoch."""
        return epoch in self._first_ms

    def takeovers(self) -> list[Takeover]:
        """All takeovers, oldest first, with the silence where both its ends are known."""
        return [replace(takeover, silence_s=self._silence(takeover.epoch)) for takeover in self._takeovers]

    def newest_us(self) -> dict[str, int | None]:
        """The latest instant that ran, of each entry."""
        return {name: max(entry.runs, default=None) for name, entry in self._entries.items()}

    def counts(self, *, tail_us: int | None = None, begun_us: int | None = None) -> Counts:
        """Count; with ``tail_us``, what fell due up to then counts as missed too if it has not run.

        ``begun_us`` stands in for an entry's first run where it never ran.
        """
        missed = coalesced = skipped = 0
        for entry in self._entries.values():
            for instant in entry.holes(tail_us, begun_us):
                skip = entry.skip_at(instant)
                if skip is None:
                    missed += 1
                elif skip.reason == "coalesced":
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
