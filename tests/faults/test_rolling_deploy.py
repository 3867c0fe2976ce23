"""Replicas of different releases: schedules that differ, rows that newer software wrote, and another app by mistake."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.checker import Interval, Report
from tests.faults.stage import Stage
from tests.support.servers import wait_for

Found = Callable[[Report | str], None]
Spec = Mapping[str, Mapping[str, Any]]

FAST: Spec = {"fast": {"every": 0.2}}
SETTINGS = {"lease_ttl": 5}


@contextmanager
def releases(*specs: Spec, env: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """A replica for each release; only the first is running."""
    each = [{"BEAT_SPEC": json.dumps(spec)} for spec in specs]
    with Stage(replicas=len(specs), replica_env=each, settings=SETTINGS, proxied=False) as stage:
        for replica in stage.cluster.replicas[1:]:
            replica.kill()
        first = stage.cluster[0]
        first.wait_for_log_of_start()
        wait_for(lambda: stage.cluster.leader() is first, 20, "the first release to lead")
        yield stage


def more(stage: Stage, count: int = 8) -> None:
    stage.history.wait_for_messages(len(stage.history.messages("fast")) + count, 30, "fast")


def hand_over(stage: Stage, to: int) -> None:
    """Start this replica, let it stand by for a while, and end the others."""
    successor = stage.cluster[to]
    lines = successor.log_text().count("action=leader_seen")
    successor.start().wait_for_log("action=leader_seen", count=lines + 1)
    more(stage)
    stage.history.fault("hand_over", to=successor.name)
    for replica in stage.cluster:
        if replica is not successor and replica.alive:
            replica.terminate()
    wait_for(lambda: stage.cluster.leader() is successor, 20, f"{successor.name} to lead")
    more(stage)


def raw_rows(stage: Stage) -> dict[str, str]:
    assert stage.cluster.admin is not None
    rows: dict[str, str] = stage.cluster.admin.hgetall(stage.cluster.key("ledger"))  # type: ignore[assignment]
    return {name[2:]: row for name, row in rows.items() if name.startswith("e:")}


@pytest.mark.slow
def test_an_older_release_touches_nothing_of_a_newer_one(found: Found) -> None:
    """It stands by, leads for a while, and hands back: entries that it does not know keep their rows as they were."""
    newer = {**FAST, "added": {"every": 3600}}
    older = {**FAST, "removed": {"every": 3600}}
    with releases(newer, older) as stage:
        more(stage)
        wait_for(lambda: "added" in raw_rows(stage), 10, "the added entry's row")
        row = raw_rows(stage)["added"]
        hand_over(stage, 1)
        wait_for(lambda: "removed" in raw_rows(stage), 10, "the removed entry's row")
        assert raw_rows(stage)["added"] == row
        hand_over(stage, 0)
        assert raw_rows(stage)["added"] == row
        report = stage.report([Interval("fast", 0.2)])
        assert report.ok, str(report)
        found(report)


@pytest.mark.slow
@pytest.mark.parametrize("edited", [True, False])
def test_an_edited_crontab_owes_no_old_slot(edited: bool) -> None:
    """Its new minute, half an hour ago, was not missed: it was not due then. Unedited, it would have been."""
    past = datetime.now(UTC) - timedelta(minutes=30)
    spec = {**FAST, "cron": {"cron": f"{past.minute} {past.hour}"}}
    before = {**FAST, "cron": {"cron": f"{past.minute} {(past.hour + 12) % 24}"}} if edited else spec
    with releases(before, spec) as stage:
        wait_for(lambda: "cron" in raw_rows(stage), 10, "the crontab's row")
        stage.cluster[0].terminate()
        row = json.loads(raw_rows(stage)["cron"])
        row["base"] -= 3600 * 1_000_000
        assert stage.cluster.admin is not None
        stage.cluster.admin.hset(stage.cluster.key("ledger"), "e:cron", json.dumps(row))
        stage.cluster[1].start()
        more(stage, 15)
        assert len(stage.history.messages("cron")) == (0 if edited else 1)
        report = stage.report([Interval("fast", 0.2)])
        assert report.ok, str(report)


@pytest.mark.slow
def test_an_edited_interval_counts_from_the_edit(found: Found) -> None:
    """An interval made shorter does not owe what it would have run before."""
    with releases({**FAST, "e": {"every": 3600}}, {**FAST, "e": {"every": 2}}) as stage:
        wait_for(lambda: "e" in raw_rows(stage), 10, "the row")
        time.sleep(2.5)
        handed_over = time.time()
        hand_over(stage, 1)
        stage.history.wait_for_messages(2, 20, "e")
        first = datetime.fromisoformat(stage.history.messages("e")[0]["scheduled_at"]).timestamp()
        assert first > handed_over
        report = stage.report([Interval("fast", 0.2), Interval("e", 2)])
        assert report.ok, str(report)
        found(report)


@pytest.mark.slow
def test_what_the_old_schedule_owed_when_nobody_led_is_not_dropped_in_silence(found: Found) -> None:
    """Stopped, and started again with an edited interval three seconds later: what fell due has its verdict."""
    with releases({**FAST, "e": {"every": 2}}, {**FAST, "e": {"every": 3600}}) as stage:
        stage.history.wait_for_messages(1, 20, "e")
        stage.cluster[0].terminate()
        last = datetime.fromisoformat(stage.history.messages("e")[-1]["scheduled_at"])
        time.sleep(3)
        stage.cluster[1].start()
        more(stage)
        (skipped,) = [skip for skip in stage.journal_skips() if skip.entry == "e"]
        assert skipped.reason == "edited"
        assert skipped.first == last + timedelta(seconds=2)
        assert datetime.fromisoformat(stage.history.messages("e")[-1]["scheduled_at"]) == last
        report = stage.report([Interval("fast", 0.2)])
        assert report.ok, str(report)
        found(report)


@pytest.mark.slow
def test_rows_of_newer_software_are_left_alone() -> None:
    """A row of a higher version is left alone, and its entry not run: a line says so; the rest goes on."""
    future = json.dumps({"v": 99, "what": "ever"})
    with releases({**FAST, "future": {"every": 0.5}}) as stage:
        wait_for(lambda: "future" in raw_rows(stage), 10, "the row")
        replica = stage.cluster[0]
        replica.terminate()
        assert stage.cluster.admin is not None
        ledger = stage.cluster.key("ledger")
        stage.cluster.admin.hset(ledger, mapping={"e:future": future, "x:unknown": "kept", "e:not-ours": "{}"})
        before = len(stage.history.messages("future"))
        replica.start()
        more(stage, 15)
        assert len(stage.history.messages("future")) == before
        rows = raw_rows(stage)
        assert (rows["future"], rows["not-ours"]) == (future, "{}")
        assert stage.cluster.admin.hget(ledger, "x:unknown") == "kept"
        assert "Entry future: its ledger row is not of this version" in replica.log_text()
        assert stage.report([Interval("fast", 0.2)]).ok


@pytest.mark.slow
def test_newer_software_keeps_older_from_leading() -> None:
    """The ledger's schema is one that this software does not know: it stands by and says why."""
    with releases(FAST, FAST) as stage:
        more(stage)
        stage.cluster[0].terminate()
        assert stage.cluster.admin is not None
        stage.cluster.admin.hset(stage.cluster.key("ledger"), "m:schema", "99")
        other = stage.cluster[1].start()
        other.wait_for_log("action=leading_forbidden")
        time.sleep(1)
        assert stage.cluster.leader() is None
        assert other.alive
        stage.cluster.admin.hset(stage.cluster.key("ledger"), "m:schema", "1")
        wait_for(lambda: stage.cluster.leader() is other, 20, "the replica to lead")


@pytest.mark.slow
def test_another_app_with_the_cluster_s_name_is_refused(found: Found) -> None:
    """It never leads, not even when nobody else does, and names both apps; the first app goes on as if alone."""
    each = [{"APP_NAME": "shop"}, {"APP_NAME": "blog"}]
    with Stage(spec=FAST, replicas=2, replica_env=each, settings=SETTINGS, proxied=False) as stage:
        stage.cluster[1].kill()
        shop, blog = stage.cluster[0], stage.cluster[1]
        wait_for(lambda: stage.cluster.leader() is shop, 20, "the first app to lead")
        more(stage)
        blog.start().wait_for_log("action=leader_seen")
        stage.nemesis.kill(shop)
        blog.wait_for_log("action=leading_forbidden")
        line = next(line for line in blog.log_text().splitlines() if "This replica can't lead" in line)
        assert "shop" in line
        assert "blog" in line
        time.sleep(1)
        assert stage.cluster.leader() is None
        shop.start()
        wait_for(lambda: stage.cluster.leader() is shop, 20, "the first app to lead again")
        more(stage)
        assert blog.alive
        report = stage.report([Interval("fast", 0.2)])
        assert report.ok, str(report)
        found(line.partition("ERROR")[2])
