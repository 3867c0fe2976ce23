"""Metrics for Prometheus: counters of events, and gauges that are read from the status at each scrape.

They are plain numbers until a scrape. Thus counting needs no shared registry, and works in ``worker -B``.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import metrics_core as core

from ha_beat import events
from ha_beat.monitoring.departed_entries import DepartedEntries
from ha_beat.monitoring.status import ReplicaStatus, current_warnings, members_seen, why_not_ready
from ha_beat.reasons import LeaseAction
from ha_beat.store import entry_pauses

#: Seconds, from a late tick to an outage of an hour.
LATENESS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class Definition:
    """Definition of one metric. ``name`` lacks the prefix ``ha_beat_`` and a counter's ending ``_total``."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    per_entry: bool = False

    @property
    def full_name(self) -> str:
        return f"ha_beat_{self.name}{'_total' if self.kind == 'counter' else ''}"


def _gauge(name: str, meaning: str, *labels: str, per_entry: bool = False) -> Definition:
    return Definition(name, "gauge", meaning, labels, per_entry=per_entry)


def _counter(name: str, meaning: str, *labels: str, per_entry: bool = False) -> Definition:
    return Definition(name, "counter", meaning, labels, per_entry=per_entry)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Definition:
    return Definition(name, "histogram", meaning, buckets=buckets)


DEFINITIONS = (
    _gauge("build_info", "Always 1; its labels are the versions.", "version", "python", "celery"),
    _gauge("leader", "1 if this replica leads, else 0."),
    _gauge("epoch", "Epoch of the lease as last seen."),
    _gauge("lease_age_seconds", "Time since the last renewal of the lease."),
    _gauge("lease_trust_seconds", "Time for which this leader may lead without another renewal, else 0."),
    _counter("terms_started", "Terms that this replica began, by why the lease was free.", "reason"),
    _counter("terms_ended", "Ended terms of this replica, by reason. A stop by SIGTERM is not counted.", "reason"),
    _counter("campaigns", "Attempts to become leader: won, refused, forbidden, unknown.", "outcome"),
    _counter("renewals", "Renewals of the lease: renewed, lost, late, unknown.", "outcome"),
    _counter("presence_losses", "Lost presence connections of this leader."),
    _counter("election_failures", "Unexpected exceptions in the election."),
    _gauge("redis_up", "1 if Redis answered last time, else 0."),
    _counter("redis_outages", "Outages of the lease's Redis, counted once per distinct error."),
    _histogram("redis_round_trip_seconds", "Round trips of campaigns and renewals to Redis.", _DURATION_BUCKETS),
    _gauge("clock_offset_seconds", "Time by which this machine's clock is ahead of the Redis server's clock."),
    _counter("clock_jumps", "Steps of this machine's wall clock."),
    _counter("occurrences", "Occurrences by the verdict that this replica recorded.", "verdict"),
    _counter("skipped", "Skipped occurrences, by reason.", "reason"),
    _histogram("lateness_seconds", "Time from the due instant until the occurrence was enqueued.", LATENESS_BUCKETS),
    _counter("requested", "Messages enqueued on request: manual, backfill.", "kind"),
    _histogram("batch_size", "Occurrences per dispatched batch.", _SIZE_BUCKETS),
    _histogram("dispatch_seconds", "Duration of the dispatch of one batch.", _DURATION_BUCKETS),
    _counter("dispatch_fenced", "Occurrences that Redis refused because the term was over."),
    _counter("dispatch_already_mine", "Occurrences that an earlier attempt, whose reply was lost, had enqueued."),
    _counter("dispatch_failures", "Failed attempts to dispatch a batch."),
    _counter("guard_dropped", "Duplicates dropped by the workers' guard. All replicas report the cluster's number."),
    _counter("entry_failures", "Failures of a single entry's schedule, message or ledger row."),
    _counter("state_losses", "Losses of data in Redis."),
    _counter("restored_entries", "Entries that were restored after redbeat's Redis had lost them."),
    _counter("problems", "Events that were logged as a warning or an error, by action.", "action"),
    _counter("invariant_breaks", "Broken invariants, by rule.", "rule"),
    _gauge("taken_up", "1 if this replica leads and has loaded schedule and ledger, else 0."),
    _gauge("entries", "Entries in the leader's due queue; 0 on a standby."),
    _gauge("due_backlog", "Entries that are due and not dispatched; 0 on a standby if a leader has them on its queue."),
    _gauge("overdue_seconds", "Lateness of the oldest due entry; 0 on a standby if a leader has it on its queue."),
    _gauge("last_tick_age_seconds", "Time since beat's main loop last made progress."),
    _gauge("duty_late_seconds", "Time since a late duty was last done; 0 while it is done in time.", "duty"),
    _gauge("ready", "1 if this replica is able to lead, else 0."),
    _gauge("paused", "1 while the cluster is paused, else 0."),
    _gauge("paused_entries", "Paused entries."),
    _gauge("members", "Living replicas by role, as this replica sees them.", "role"),
    _gauge("warnings", "Current warnings by code.", "code"),
    _counter("entry_occurrences", "Occurrences by entry and verdict.", "entry", "verdict", per_entry=True),
    _gauge("entry_last_enqueued_timestamp_seconds", "Unix time of the entry's last message.", "entry", per_entry=True),
    _gauge("entry_last_lateness_seconds", "Lateness of the entry's last occurrence.", "entry", per_entry=True),
)
_BY_NAME = {definition.name: definition for definition in DEFINITIONS}

#: Counters that follow one kind of event: the counter, the field that is its label, and the field that is its amount.
_COUNTED: dict[type[events.Event], tuple[str, str, str]] = {
    events.TermStarted: ("terms_started", "reason", ""),
    events.TermEnded: ("terms_ended", "reason", ""),
    events.PresenceLost: ("presence_losses", "", ""),
    events.ElectionFailed: ("election_failures", "", ""),
    events.LeaseUnreachable: ("redis_outages", "", ""),
    events.ClockJumped: ("clock_jumps", "", ""),
    events.DispatchFenced: ("dispatch_fenced", "", "size"),
    events.DispatchFailed: ("dispatch_failures", "", ""),
    events.LedgerReadFailed: ("dispatch_failures", "", ""),
    events.EnqueuedOnRequest: ("requested", "kind", ""),
    events.EntryFailed: ("entry_failures", "", ""),
    events.StateLost: ("state_losses", "", ""),
    events.ScheduleRestored: ("restored_entries", "", "entries"),
    events.InvariantBroken: ("invariant_breaks", "rule", ""),
}

#: Values of one metric, each with its label values.
_Series = list[tuple[tuple[str, ...], float]]


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0


class Metrics:
    """Subscriber that counts events, and collector for ``prometheus_client``."""

    def __init__(self, status: ReplicaStatus, versions: Mapping[str, str], *, per_entry: bool) -> None:
        """``versions`` has the versions of this package (``version``) and of Celery (``celery``)."""
        self._status = status
        self._versions = {**versions, "python": platform.python_version()}
        self._per_entry = per_entry
        # Reentrant, because a signal handler may emit an event in the main thread.
        self._lock = threading.RLock()
        #: Values of counters, by metric and by label values.
        self._counters: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, _Histogram] = {}
        for definition in DEFINITIONS:
            if definition.kind == "histogram":
                self._histograms[definition.name] = _Histogram([0] * (len(definition.buckets) + 1))
            elif definition.kind == "counter":
                self._counters[definition.name] = {} if definition.labels else {(): 0.0}
        # An alert on an increase needs a series that has existed before it.
        self._start("campaigns", "won", "refused", "forbidden", "unknown")
        self._start("renewals", "renewed", "lost", "late", "unknown")
        self._start("occurrences", "enqueued", "skipped", "uncertain")
        self._start("problems", *sorted(kind.action for kind in events.Problem.__subclasses__()))
        self._entry_gauges: dict[str, tuple[float, float]] = {}
        self._departed = DepartedEntries(status.scheduled, status.clock)

    def _start(self, name: str, *values: str) -> None:
        self._counters[name] = {(value,): 0.0 for value in values}

    # --- Counting

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            self._count(event)
            if event.problem:
                self._add("problems", event.action)

    def _count(self, event: events.Event) -> None:
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
            case events.BatchDispatched(size=size, seconds=seconds, already_mine=mine):
                self._observe("batch_size", size)
                self._observe("dispatch_seconds", seconds)
                self._add("dispatch_already_mine", by=mine)
            case events.LeaseAttempted(operation=operation, outcome=outcome, seconds=seconds):
                self._add("campaigns" if operation is LeaseAction.CAMPAIGN else "renewals", outcome)
                self._observe("redis_round_trip_seconds", seconds)
            case _ if type(event) in _COUNTED:
                name, label, amount = _COUNTED[type(event)]
                labels = (getattr(event, label),) if label else ()
                self._add(name, *labels, by=getattr(event, amount) if amount else 1)

    def _verdict(self, entry: str, verdict: str, many: int) -> None:
        self._add("occurrences", verdict, by=many)
        if self._per_entry:
            self._add("entry_occurrences", entry, verdict, by=many)
            self._departed.saw(entry)
            gone = set(self._departed.take())
            if gone:
                series = self._counters["entry_occurrences"]
                self._counters["entry_occurrences"] = {key: n for key, n in series.items() if key[0] not in gone}
                self._entry_gauges = {name: at for name, at in self._entry_gauges.items() if name not in gone}

    def _add(self, name: str, *labels: str, by: float = 1) -> None:
        series = self._counters[name]
        series[labels] = series.get(labels, 0.0) + by

    def _observe(self, name: str, value: float) -> None:
        histogram = self._histograms[name]
        histogram.counts[bisect_left(_BY_NAME[name].buckets, value)] += 1
        histogram.total += value

    # --- Scrape

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def collect(self) -> Iterator[core.Metric]:
        """Yield the metric families."""
        gauges = self._gauges()
        for definition in DEFINITIONS:
            if definition.per_entry and not self._per_entry:
                continue
            name = f"ha_beat_{definition.name}"
            if definition.kind == "histogram":
                histogram = core.HistogramMetricFamily(name, definition.help)
                histogram.add_metric([], *self._cumulated(definition))
                yield histogram
                continue
            counts = definition.kind == "counter"
            family = (core.CounterMetricFamily if counts else core.GaugeMetricFamily)(
                name, definition.help, labels=definition.labels
            )
            for values, number in self._series(definition.name) if counts else gauges[definition.name]:
                family.add_metric(values, number)
            yield family

    def _series(self, name: str) -> _Series:
        if name == "guard_dropped":
            # The workers count it in Redis.
            view = self._status.snapshot.view
            return [((), float(view.dropped if view else 0))]
        with self._lock:
            return list(self._counters[name].items())

    def _cumulated(self, definition: Definition) -> tuple[list[Any], float]:
        with self._lock:
            histogram = self._histograms[definition.name]
            counts, total = list(histogram.counts), histogram.total
        sums, so_far = [], 0
        for limit, count in zip((*definition.buckets, float("inf")), counts, strict=True):
            so_far += count
            sums.append(("+Inf" if limit == float("inf") else str(float(limit)), so_far))
        return sums, total

    def _gauges(self) -> dict[str, _Series]:
        """Return the series of each gauge, by the gauge's name."""
        found: dict[str, _Series] = {name: [((), float(value))] for name, value in self._plain_gauges().items()}
        status, versions = self._status, self._versions
        members, late = members_seen(status), status.duties.late()
        roles = {"leader": 0, "standby": 0} | Counter(member.role for member in members)
        warnings = Counter(warning.code for warning in current_warnings(status, members))
        with self._lock:
            last = dict(self._entry_gauges)
        return found | {
            "build_info": [((versions["version"], versions["python"], versions["celery"]), 1.0)],
            "duty_late_seconds": [
                ((duty,), late[duty].seconds if duty in late else 0.0) for duty in status.duties.known()
            ],
            "members": [((role,), float(count)) for role, count in roles.items()],
            "warnings": [((code,), float(count)) for code, count in warnings.items()],
            "entry_last_enqueued_timestamp_seconds": [((entry,), at) for entry, (at, _) in last.items()],
            "entry_last_lateness_seconds": [((entry,), lateness) for entry, (_, lateness) in last.items()],
        }

    def _plain_gauges(self) -> dict[str, float]:
        """Return the values of the gauges that have no labels."""
        status, snapshot = self._status, self._status.snapshot
        view, lease, term = snapshot.view, snapshot.lease, status.term
        age = max(0.0, (status.now_ms() - lease.renewed_ms) / 1000) if lease and lease.renewed_ms else float("nan")
        return {
            "leader": term is not None,
            "epoch": term.epoch if term else lease.epoch if lease else 0,
            "lease_age_seconds": age,
            "lease_trust_seconds": status.trust_left,
            "redis_up": not status.unreachable,
            "clock_offset_seconds": snapshot.clock_offset,
            "entries": status.entries(),
            "due_backlog": status.backlog(),
            "overdue_seconds": status.overdue(),
            "last_tick_age_seconds": status.idle,
            "taken_up": status.taken_up,
            "ready": not why_not_ready(status),
            "paused": bool(view and view.paused),
            "paused_entries": len(entry_pauses.in_force(view.paused_entries)) if view else 0,
        }
