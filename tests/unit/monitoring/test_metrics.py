"""Tests of the metrics' values and names, and of the bound on series."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ha_beat import events
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.monitoring.metrics import DEFINITIONS, LATENESS_BUCKETS, Metrics
from ha_beat.reasons import (
    EntryFault,
    Invariant,
    LeaseAction,
    LeaseOutcome,
    LossKind,
    SkipReason,
    TermEnd,
    TermStart,
    UncertainReason,
)
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.store.membership import ClusterView
from tests.support.entries import scheduled, state_of
from tests.unit.monitoring.scene import Scene

DUE = datetime(2026, 1, 1, tzinfo=UTC)
WON = events.LeaseAttempted(LeaseAction.CAMPAIGN, LeaseOutcome.WON, 0.01)
BATCH = events.BatchDispatched(40, 0.02, 7)
UNCERTAIN = events.OccurrenceUncertain("e", DUE, "id", UncertainReason.NO_ANSWER)
STEPPED_DOWN = events.TermEnded(1, TermEnd.STEP_DOWN, 5.0, "deploy@released-web-1")
UNANSWERED = events.LeaseAttempted(LeaseAction.RENEWAL, LeaseOutcome.UNKNOWN, 2.5)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)["ha_beat_" + name, tuple(sorted(labels.items()))]


def enqueued(entry: str = "nightly", lateness: float = 0.02) -> events.Enqueued:
    return events.Enqueued(entry, "mail", "id", DUE, lateness)


def skipped(count: int, reason: SkipReason) -> events.OccurrenceSkipped:
    return events.OccurrenceSkipped("e", DUE, DUE, count, reason)


@pytest.mark.parametrize(
    ("event", "name", "labels", "expected"),
    [
        (enqueued(), "occurrences_total", {"verdict": "enqueued"}, 1),
        (enqueued(), "lateness_seconds_bucket", {"le": "0.025"}, 1),
        (enqueued(), "lateness_seconds_bucket", {"le": "0.01"}, 0),
        (skipped(3, SkipReason.COALESCED), "occurrences_total", {"verdict": "skipped"}, 3),
        (skipped(3, SkipReason.COALESCED), "skipped_total", {"reason": "coalesced"}, 3),
        (skipped(-1, SkipReason.MISSED), "skipped_total", {"reason": "missed"}, 1),
        (UNCERTAIN, "occurrences_total", {"verdict": "uncertain"}, 1),
        (BATCH, "batch_size_bucket", {"le": "50.0"}, 1),
        (BATCH, "dispatch_already_mine_total", {}, 7),
        (BATCH, "dispatch_seconds_sum", {}, 0.02),
        (events.DispatchFenced(1, 40, TermEnd.SUPERSEDED), "dispatch_fenced_total", {}, 40),
        (events.DispatchFailed(1, "why"), "dispatch_failures_total", {}, 1),
        (WON, "campaigns_total", {"outcome": "won"}, 1),
        (UNANSWERED, "renewals_total", {"outcome": "unknown"}, 1),
        (UNANSWERED, "redis_round_trip_seconds_count", {}, 1),
        (events.TermStarted(1, "x", TermStart.LEADER_GONE), "terms_started_total", {"reason": "leader_gone"}, 1),
        (STEPPED_DOWN, "terms_ended_total", {"reason": "step_down"}, 1),
        (events.LeaseUnreachable("why", leading=True), "redis_outages_total", {}, 1),
        (events.PresenceLost("why"), "presence_losses_total", {}, 1),
        (events.ElectionFailed("why"), "election_failures_total", {}, 1),
        (events.EntryFailed("e", EntryFault.REFUSED), "entry_failures_total", {}, 1),
        (events.StateLost(LossKind.LEDGER_LOST, catch_up=False), "state_losses_total", {}, 1),
        (events.ScheduleRestored(2, 3), "restored_entries_total", {}, 2),
        (events.ClockJumped(60.0, followed=True), "clock_jumps_total", {}, 1),
        (events.InvariantBroken(Invariant.OVERDUE, "e", "why"), "invariant_breaks_total", {"rule": "overdue"}, 1),
    ],
)
def test_event_increments_its_metric(event, name, labels, expected):
    metrics = Scene().metrics()
    before = samples(metrics).get(("ha_beat_" + name, tuple(sorted(labels.items()))), 0)
    metrics(event)
    assert value(metrics, name, **labels) - before == expected


def test_gauges_follow_the_status():
    scene = Scene(polled=False)
    metrics = scene.metrics()
    expected = {"leader": 0, "ready": 0, "guard_dropped_total": 0}
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "warnings", code="redis_unreachable") == 1
    scene.lead(epoch=11, seconds=9.0)
    scene.election.idle = 3.5
    view = ClusterView(1, None, (), "gen", 1, 0, 0, "", dropped=7)
    scene.status.snapshot = replace(scene.status.snapshot, view=view)
    expected = {"leader": 1, "ready": 1, "epoch": 11, "lease_trust_seconds": 9.0, "last_tick_age_seconds": 3.5}
    expected |= {"guard_dropped_total": 7}
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "members", role="leader") == 1


def test_entry_waiting_for_a_retry_is_overdue():
    """An entry whose schedule raises is retried a minute later, and stays due until then."""
    scene = Scene()
    metrics, now = scene.metrics(), scene.clock.now()
    state = EntryState(ScheduledEntry("nightly", None, None, MisfireRules(), "", now), now)
    scene.due_queue.put(state, now - timedelta(seconds=70), now + timedelta(seconds=50))
    assert value(metrics, "overdue_seconds") == 0
    scene.lead()
    assert (value(metrics, "overdue_seconds"), value(metrics, "due_backlog")) == (70, 0)
    scene.due_queue.put(state, now + timedelta(seconds=1))
    assert value(metrics, "overdue_seconds") == 0


def test_every_metric_exists_from_the_start_and_is_well_named():
    metrics = Scene().metrics(per_entry=True)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    for definition in DEFINITIONS:
        family = families[f"ha_beat_{definition.name}"]
        assert (family.type, family.documentation) == (definition.kind, definition.help)
        assert re.fullmatch(r"[a-z][a-z_]*", definition.name)
        assert definition.kind == "counter" or not definition.full_name.endswith("_total")


def test_series_per_entry_exist_only_with_per_entry():
    bounded, per_entry = Scene().metrics(), Scene().metrics(per_entry=True)
    start = len(samples(bounded))
    for number in range(200):
        bounded(enqueued(f"entry-{number}"))
        per_entry(enqueued(f"entry-{number}"))
    assert len(samples(bounded)) == start
    assert value(per_entry, "entry_occurrences_total", entry="entry-7", verdict="enqueued") == 1
    assert value(per_entry, "entry_last_lateness_seconds", entry="entry-7") == 0.02


def test_series_of_departed_entries_are_dropped_after_an_hour():
    """Ten new entries a minute for weeks, each due once. One entry of the schedule is seldom due."""
    scene = Scene()
    metrics = scene.metrics(per_entry=True)
    metrics(enqueued("yearly"))
    scene.due_queue.put(state_of(scheduled("yearly", every=None)), datetime.now(UTC))
    most = 0
    for number in range(20_000):
        scene.clock.advance(6)
        metrics(enqueued(f"once-{number}"))
        if number % 100 == 0:
            # A standby does not know the schedule.
            scene.election.term = None if number % 200 else scene.lead()
            most = max(most, len(metrics._counters["entry_occurrences"]), len(metrics._entry_gauges))
    assert most < 2_000
    scene.lead()
    for name in ("yearly", "once-19999", "once-19500"):
        assert value(metrics, "entry_occurrences_total", entry=name, verdict="enqueued") == 1
        assert value(metrics, "entry_last_lateness_seconds", entry=name) == 0.02


def test_lateness_buckets_reach_from_5_ms_to_an_hour():
    assert (LATENESS_BUCKETS[0], LATENESS_BUCKETS[-1]) == (0.005, 3600)
    metrics = Scene().metrics()
    metrics(enqueued(lateness=7200))
    metrics(enqueued(lateness=-0.001))
    assert value(metrics, "lateness_seconds_bucket", le="+Inf") == 2
    assert value(metrics, "lateness_seconds_bucket", le="3600.0") == 1
    assert value(metrics, "lateness_seconds_sum") == 7200
