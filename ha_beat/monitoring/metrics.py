"""Metrics for Prometheus. Counters follow events; gauges are read from the status when they are scraped.

They are plain numbers until a scrape, so counting needs no library, no shared registry, and works in ``worker -B``.
"""

from __future__ import annotations

import platform
import sys
import threading
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ha_beat import events
from ha_beat.monitoring.departed_entries import DepartedEntries
from ha_beat.monitoring.status import ReplicaStatus
from ha_beat.reasons import LeaseAction
from ha_beat.store import entry_pauses

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

#: Seconds. From a 5 ms tick to an hour's outage.
LATENESS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class Definition:
    """Definition of one metric. ``name`` is without the prefix ``ha_beat_`` and, of a counter, without ``_total``."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    per_entry: bool = False

    @property
    def full_name(self) -> str:
        return f"ha_beat_{self.name}{'_total' if self.kind == 'counter' else ''}"


DEFINITIONS = (
    Definition("build_info", "gauge", "Always 1; its labels are the versions.", ("version", "python", "celery")),
    Definition("leader", "gauge", "1 if this replica leads, else 0."),
    Definition("epoch", "gauge", "Epoch of the lease as last seen."),
    Definition("lease_age_seconds", "gauge", "Time since the last renewal of the lease."),
    Definition("lease_trust_seconds", "gauge", "Time for which this leader may lead without another renewal, else 0."),
    Definition("terms_started", "counter", "Terms that this replica began, by why the lease was free.", ("reason",)),
    Definition(
        "terms_ended",
        "counter",
        "Terms of this replica that ended, by reason. A term that ends with the process (SIGTERM) is not counted.",
        ("reason",),
    ),
    Definition("campaigns", "counter", "Attempts to become leader: won, refused, forbidden, unknown.", ("outcome",)),
    Definition("renewals", "counter", "Renewals of the lease: renewed, lost, late, unknown.", ("outcome",)),
    Definition("presence_losses", "counter", "Lost presence connections of this leader."),
    Definition("election_failures", "counter", "Unexpected exceptions in the election."),
    Definition("redis_up", "gauge", "1 if Redis answered last time, else 0."),
    Definition("redis_outages", "counter", "Outages of the lease's Redis, counted once per distinct error."),
    Definition(
        "redis_round_trip_seconds",
        "histogram",
        "Round trips of campaigns and renewals to the lease's Redis.",
        buckets=_DURATION_BUCKETS,
    ),
    Definition(
        "clock_offset_seconds", "gauge", "Time by which this machine's clock is ahead of the Redis server's clock."
    ),
    Definition("clock_jumps", "counter", "Steps of this machine's wall clock."),
    Definition("occurrences", "counter", "Occurrences by the verdict that this replica recorded.", ("verdict",)),
    Definition("skipped", "counter", "Skipped occurrences, by reason.", ("reason",)),
    Definition(
        "lateness_seconds",
        "histogram",
        "Time from the due instant until the occurrence was enqueued.",
        buckets=LATENESS_BUCKETS,
    ),
    Definition("requested", "counter", "Messages enqueued on request: manual, backfill.", ("kind",)),
    Definition("batch_size", "histogram", "Occurrences per dispatched batch.", buckets=_SIZE_BUCKETS),
    Definition("dispatch_seconds", "histogram", "Duration of the dispatch of one batch.", buckets=_DURATION_BUCKETS),
    Definition("dispatch_fenced", "counter", "Occurrences that Redis refused because the term was over."),
    Definition(
        "dispatch_already_mine", "counter", "Occurrences that an earlier attempt, whose reply was lost, had enqueued."
    ),
    Definition("dispatch_failures", "counter", "Failed attempts to dispatch a batch."),
    Definition(
        "guard_dropped",
        "counter",
        "Duplicates that the workers' guard dropped in the whole cluster. All replicas report the same number.",
    ),
    Definition("entry_failures", "counter", "Failures of a single entry's schedule, message or ledger row."),
    Definition("state_losses", "counter", "Losses of data in Redis."),
    Definition("restored_entries", "counter", "Entries that were restored after redbeat's Redis had lost them."),
    Definition("problems", "counter", "Events that were logged as a warning or an error, by action.", ("action",)),
    Definition("invariant_breaks", "counter", "Broken invariants, by rule.", ("rule",)),
    Definition(
        "taken_up",
        "gauge",
        "1 if this replica leads and has loaded schedule and ledger, else 0.",
    ),
    Definition("entries", "gauge", "Entries in the leader's due queue; 0 on a standby."),
    Definition(
        "due_backlog",
        "gauge",
        "Entries that are due and not dispatched; 0 on a standby if a leader has them on its queue.",
    ),
    Definition(
        "overdue_seconds",
        "gauge",
        "Time for which the oldest due entry has been due; 0 on a standby if a leader has it on its queue.",
    ),
    Definition("last_tick_age_seconds", "gauge", "Time since beat's main loop last made progress."),
    Definition(
        "duty_late_seconds",
        "gauge",
        "Time since a late duty of this replica was last done; 0 while it is done in time.",
        ("duty",),
    ),
    Definition("ready", "gauge", "1 if this replica is able to lead, else 0."),
    Definition("paused", "gauge", "1 while the cluster is paused, else 0."),
    Definition("paused_entries", "gauge", "Paused entries."),
    Definition("members", "gauge", "Living replicas by role, as this replica sees them.", ("role",)),
    Definition("warnings", "gauge", "Current warnings by code.", ("code",)),
    Definition(
        "entry_occurrences", "counter", "Occurrences by entry and verdict.", ("entry", "verdict"), per_entry=True
    ),
    Definition(
        "entry_last_enqueued_timestamp_seconds",
        "gauge",
        "Time at which this replica last enqueued the entry, in seconds since the Unix epoch.",
        ("entry",),
        per_entry=True,
    ),
    Definition(
        "entry_last_lateness_seconds", "gauge", "Lateness of the entry's last occurrence.", ("entry",), per_entry=True
    ),
)
_BY_NAME = {definition.name: definition for definition in DEFINITIONS}


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0


@dataclass(slots=True)
class _Numbers:
    """Values by metric; those of counters by their label values."""

    counters: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)
    histograms: dict[str, _Histogram] = field(default_factory=dict)


class Metrics:
    """Subscriber that counts events, and collector for ``prometheus_client``."""

    def __init__(self, status: ReplicaStatus, versions: Mapping[str, str], *, per_entry: bool) -> None:
        """``versions`` has the versions of this package (``version``) and of Celery (``celery``)."""
        self._status = status
        self._versions = {**versions, "python": platform.python_version()}
        self._per_entry = per_entry
        # Reentrant, because a signal handler may emit an event in the main thread.
        self._lock = threading.RLock()
        self._numbers = _Numbers()
        for definition in DEFINITIONS:
            if definition.kind == "histogram":
                self._numbers.histograms[definition.name] = _Histogram([0] * (len(definition.buckets) + 1))
            elif definition.kind == "counter":
                self._numbers.counters[definition.name] = {} if definition.labels else {(): 0.0}
        # An alert on an increase needs a series that exists from the start.
        self._start("campaigns", "won", "refused", "forbidden", "unknown")
        self._start("renewals", "renewed", "lost", "late", "unknown")
        self._start("occurrences", "enqueued", "skipped", "uncertain")
        self._start("problems", *sorted(kind.action for kind in events.Problem.__subclasses__()))
        self._entry_gauges: dict[str, tuple[float, float]] = {}
        self._departed = DepartedEntries(status.scheduled, status.elapsed)

    def _start(self, name: str, *values: str) -> None:
        self._numbers.counters[name] = {(value,): 0.0 for value in values}

    # --- Counting

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            self._count(event)
            if event.problem:
                self._add("problems", event.action)

    def _count(self, event: events.Event) -> None:  # noqa: PLR0912 -- one case for each event
        match event:
            case events.Enqueued(entry=entry, scheduled_at=scheduled_at, lateness=lateness):
                self._verdict(entry, "enqueued", 1)
                self._observe("lateness_seconds", max(0.0, lateness))
                if self._per_entry:
                    self._entry_gauges[entry] = (scheduled_at.timestamp() + lateness, lateness)
            case events.OccurrenceSkipped(entry=entry, count=count, reason=reason):
                many = max(count, 1)
                self._verdict(entry, "skipped", many)
                self._add("skipped", reason, by=many)
            case events.OccurrenceUncertain(entry=entry):
                self._verdict(entry, "uncertain", 1)
            case events.EnqueuedOnRequest(kind=kind):
                self._add("requested", kind)
            case events.BatchDispatched(size=size, seconds=seconds, already_mine=mine):
                self._observe("batch_size", size)
                self._observe("dispatch_seconds", seconds)
                self._add("dispatch_already_mine", by=mine)
            case events.DispatchFenced(size=size):
                self._add("dispatch_fenced", by=size)
            case events.DispatchFailed() | events.LedgerReadFailed():
                self._add("dispatch_failures")
            case events.LeaseAttempted(operation=operation, outcome=outcome, seconds=seconds):
                self._add("campaigns" if operation is LeaseAction.CAMPAIGN else "renewals", outcome)
                self._observe("redis_round_trip_seconds", seconds)
            case events.TermStarted(reason=reason):
                self._add("terms_started", reason)
            case events.TermEnded(reason=reason):
                self._add("terms_ended", reason)
            case events.LeaseUnreachable():
                self._add("redis_outages")
            case events.PresenceLost():
                self._add("presence_losses")
            case events.ElectionFailed():
                self._add("election_failures")
            case events.EntryFailed():
                self._add("entry_failures")
            case events.StateLost():
                self._add("state_losses")
            case events.ScheduleRestored(entries=entries):
                self._add("restored_entries", by=entries)
            case events.ClockJumped():
                self._add("clock_jumps")
            case events.InvariantBroken(rule=rule):
                self._add("invariant_breaks", rule)
            case _:
                pass

    def _verdict(self, entry: str, verdict: str, many: int) -> None:
        self._add("occurrences", verdict, by=many)
        if self._per_entry:
            self._add("entry_occurrences", entry, verdict, by=many)
            self._departed.saw(entry)
            self._drop(self._departed.take())

    def _drop(self, entries: Collection[str]) -> None:
        """Drop the series of these entries."""
        if entries:
            occurrences = self._numbers.counters["entry_occurrences"]
            gone = set(entries)
            for labels in [labels for labels in occurrences if labels[0] in gone]:
                del occurrences[labels]
            for entry in gone:
                self._entry_gauges.pop(entry, None)

    def _add(self, name: str, *labels: str, by: float = 1) -> None:
        series = self._numbers.counters[name]
        series[labels] = series.get(labels, 0.0) + by

    def _observe(self, name: str, value: float) -> None:
        histogram = self._numbers.histograms[name]
        histogram.counts[bisect_left(_BY_NAME[name].buckets, value)] += 1
        histogram.total += value

    # --- Scrape

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format. Needs ``prometheus_client``."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        from prometheus_client import metrics_core as core

        gauges = self._gauges()
        for definition in DEFINITIONS:
            if definition.per_entry and not self._per_entry:
                continue
            name, labels = f"ha_beat_{definition.name}", definition.labels
            if definition.kind == "counter":
                counter = core.CounterMetricFamily(name, definition.help, labels=labels)
                for values, number in self._series(definition.name):
                    counter.add_metric(values, number)
                yield counter
            elif definition.kind == "histogram":
                histogram = core.HistogramMetricFamily(name, definition.help)
                buckets, total = self._cumulated(definition)
                histogram.add_metric([], buckets, total)
                yield histogram
            else:
                gauge = core.GaugeMetricFamily(name, definition.help, labels=labels)
                for values, number in gauges[definition.name]:
                    gauge.add_metric(values, number)
                yield gauge

    def _series(self, name: str) -> list[tuple[tuple[str, ...], float]]:
        if name == "guard_dropped":
            # The workers count it in Redis.
            view = self._status.snapshot.view
            return [((), float(view.dropped if view else 0))]
        with self._lock:
            return list(self._numbers.counters[name].items())

    def _cumulated(self, definition: Definition) -> tuple[list[Any], float]:
        with self._lock:
            histogram = self._numbers.histograms[definition.name]
            counts, total = list(histogram.counts), histogram.total
        sums, so_far = [], 0
        for limit, count in zip((*definition.buckets, float("inf")), counts, strict=True):
            so_far += count
            sums.append(("+Inf" if limit == float("inf") else str(float(limit)), so_far))
        return sums, total

    def _gauges(self) -> dict[str, list[tuple[tuple[str, ...], float]]]:
        status = self._status
        view = status.snapshot.view
        lease = view.lease if view else None
        term = status.term
        members = status.members()
        age = max(0.0, (status.now_ms() - lease.renewed_ms) / 1000) if lease and lease.renewed_ms else float("nan")
        roles = {"leader": 0, "standby": 0}
        for member in members:
            roles[member.role] = roles.get(member.role, 0) + 1
        codes: dict[str, int] = {}
        for warning in status.warnings(members):
            codes[warning.code] = codes.get(warning.code, 0) + 1
        single = {
            "leader": float(term is not None),
            "epoch": float(term.epoch if term else lease.epoch if lease else 0),
            "lease_age_seconds": age,
            "lease_trust_seconds": status.trust_left,
            "redis_up": float(not status.unreachable),
            "clock_offset_seconds": status.snapshot.clock_offset,
            "entries": float(status.entries()),
            "due_backlog": float(status.backlog()),
            "overdue_seconds": status.overdue(),
            "last_tick_age_seconds": status.idle,
            "taken_up": float(status.taken_up),
            "ready": float(not status.ready()),
            "paused": float(bool(view and view.paused)),
            "paused_entries": float(len(entry_pauses.in_force(view.paused_entries)) if view else 0),
        }
        found: dict[str, list[tuple[tuple[str, ...], float]]] = {name: [((), value)] for name, value in single.items()}
        versions = self._versions
        found["build_info"] = [((versions["version"], versions["python"], versions["celery"]), 1.0)]
        late = status.duties.late()
        found["duty_late_seconds"] = [
            ((duty,), late[duty].seconds if duty in late else 0.0) for duty in status.duties.known()
        ]
        found["members"] = [((role,), float(count)) for role, count in roles.items()]
        found["warnings"] = [((code,), float(count)) for code, count in codes.items()]
        with self._lock:
            last = dict(self._entry_gauges)
        found["entry_last_enqueued_timestamp_seconds"] = [((entry,), at) for entry, (at, _) in last.items()]
        found["entry_last_lateness_seconds"] = [((entry,), late) for entry, (_, late) in last.items()]
        return found


def metrics_table() -> str:
    """Return all metrics as a Markdown table."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for definition in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in definition.labels)
        if definition.buckets:
            labels = f"`le`: {definition.buckets[0]:g} to {definition.buckets[-1]:g}"
        only = " *(Only with `metrics_per_entry`.)*" if definition.per_entry else ""
        lines.append(f"| `{definition.full_name}` | {definition.kind} | {labels} | {definition.help}{only} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(metrics_table() + "\n")
