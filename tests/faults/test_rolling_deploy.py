"""Replicas of different releases: other schedules, rows of newer software, and another app by mistake."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.checker import Interval, instant
from tests.faults.scenario import ClusterScenario
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow

Spec = Mapping[str, Mapping[str, Any]]

FAST: Spec = {"fast": {"every": 0.2}}
FAST_INTERVAL = Interval("fast", 0.2)
SETTINGS = {"lease_ttl": 5}


@contextmanager
def releases(*specs: Spec) -> Iterator[ClusterScenario]:
    """Start the first of the replicas, one for each release."""
    each = [{"BEAT_SPEC": json.dumps(spec)} for spec in specs]
    with ClusterScenario(replicas=len(specs), replica_env=each, settings=SETTINGS, proxied=False) as scenario:
        for replica in scenario.cluster.replicas[1:]:
            replica.kill()
        first = scenario.cluster[0]
        first.wait_for_log_of_start()
        wait_for(lambda: scenario.cluster.leader() is first, 20, "the first release to lead")
        yield scenario


def hand_over(scenario: ClusterScenario, to: int) -> None:
    """Start this replica, let it stand by for a while, and end the others."""
    successor = scenario.cluster[to]
    lines = successor.log_text().count("action=leader_seen")
    successor.start().wait_for_log("action=leader_seen", count=lines + 1)
    scenario.more(8, "fast")
    scenario.history.fault("hand_over", to=successor.name)
    for replica in scenario.cluster:
        if replica is not successor and replica.alive:
            replica.terminate()
    wait_for(lambda: scenario.cluster.leader() is successor, 20, f"{successor.name} to lead")
    scenario.more(8, "fast")


def raw_rows(scenario: ClusterScenario) -> dict[str, str]:
    rows = scenario.redis.admin.hgetall(scenario.cluster.key("ledger"))
    return {name[2:]: row for name, row in rows.items() if name.startswith("e:")}


def wait_for_row(scenario: ClusterScenario, entry: str) -> str:
    return wait_for(lambda: raw_rows(scenario).get(entry), 10, f"the row of {entry}")


def last_instant(scenario: ClusterScenario, entry: str) -> datetime:
    return instant(scenario.history.messages(entry)[-1]["scheduled_at"])


def test_older_release_does_not_touch_rows_of_a_newer_one(found):
    """It stands by, leads for a while and hands back. It does not change rows of entries that it does not know."""
    newer = {**FAST, "added": {"every": 3600}}
    older = {**FAST, "removed": {"every": 3600}}
    with releases(newer, older) as scenario:
        scenario.more(8, "fast")
        row = wait_for_row(scenario, "added")
        hand_over(scenario, 1)
        wait_for_row(scenario, "removed")
        assert raw_rows(scenario)["added"] == row
        hand_over(scenario, 0)
        assert raw_rows(scenario)["added"] == row
        found(scenario.clean_report([FAST_INTERVAL]))


@pytest.mark.parametrize("edited", [True, False])
def test_edited_crontab_does_not_owe_an_earlier_slot(edited: bool):
    """Its new minute, half an hour ago, was not due before the edit, so it was not missed."""
    past = datetime.now(UTC) - timedelta(minutes=30)
    spec = {**FAST, "cron": {"cron": f"{past.minute} {past.hour}"}}
    before = {**FAST, "cron": {"cron": f"{past.minute} {(past.hour + 12) % 24}"}} if edited else spec
    with releases(before, spec) as scenario:
        wait_for_row(scenario, "cron")
        scenario.cluster[0].terminate()
        row = json.loads(raw_rows(scenario)["cron"])
        row["base"] -= 3600 * 1_000_000
        scenario.redis.admin.hset(scenario.cluster.key("ledger"), "e:cron", json.dumps(row))
        scenario.cluster[1].start()
        scenario.more(15, "fast")
        assert len(scenario.history.messages("cron")) == (0 if edited else 1)
        scenario.clean_report([FAST_INTERVAL])


def test_edited_interval_counts_from_the_edit(found):
    with releases({**FAST, "e": {"every": 3600}}, {**FAST, "e": {"every": 2}}) as scenario:
        wait_for_row(scenario, "e")
        time.sleep(2.5)
        handed_over = time.time()
        hand_over(scenario, 1)
        scenario.history.wait_for_messages(2, 20, "e")
        assert instant(scenario.history.messages("e")[0]["scheduled_at"]).timestamp() > handed_over
        found(scenario.clean_report([FAST_INTERVAL, Interval("e", 2)]))


def test_old_schedule_due_without_a_leader_is_recorded_after_an_edit(found):
    """All replicas restart with an edited interval three seconds after their stop."""
    with releases({**FAST, "e": {"every": 2}}, {**FAST, "e": {"every": 3600}}) as scenario:
        scenario.history.wait_for_messages(1, 20, "e")
        scenario.cluster[0].terminate()
        last = last_instant(scenario, "e")
        time.sleep(3)
        scenario.cluster[1].start()
        scenario.more(8, "fast")
        (skipped,) = [skip for skip in scenario.journal_skips() if skip.entry == "e"]
        assert skipped.reason == "edited"
        assert skipped.first == last + timedelta(seconds=2)
        assert last_instant(scenario, "e") == last
        found(scenario.clean_report([FAST_INTERVAL]))


def test_rows_of_a_newer_version_are_kept_and_not_run():
    future = json.dumps({"v": 99, "what": "ever"})
    with releases({**FAST, "future": {"every": 0.5}}) as scenario:
        wait_for_row(scenario, "future")
        replica = scenario.cluster[0]
        replica.terminate()
        ledger = scenario.cluster.key("ledger")
        scenario.redis.admin.hset(ledger, mapping={"e:future": future, "x:unknown": "kept", "e:not-ours": "{}"})
        before = len(scenario.history.messages("future"))
        replica.start()
        scenario.more(15, "fast")
        assert len(scenario.history.messages("future")) == before
        rows = raw_rows(scenario)
        assert (rows["future"], rows["not-ours"]) == (future, "{}")
        assert scenario.redis.admin.hget(ledger, "x:unknown") == "kept"
        assert "action=entry_failed entry=future reason=row_unreadable" in replica.log_text()
        scenario.clean_report([FAST_INTERVAL])


def test_newer_schema_prevents_an_older_replica_from_leading():
    with releases(FAST, FAST) as scenario:
        scenario.more(8, "fast")
        scenario.cluster[0].terminate()
        scenario.redis.admin.hset(scenario.cluster.key("ledger"), "m:schema", "99")
        other = scenario.cluster[1].start()
        other.wait_for_log("action=leading_forbidden reason=newer_schema")
        time.sleep(1)
        assert scenario.cluster.leader() is None
        assert other.alive
        scenario.redis.admin.hset(scenario.cluster.key("ledger"), "m:schema", "1")
        wait_for(lambda: scenario.cluster.leader() is other, 20, "the replica to lead")


def test_another_app_with_the_same_cluster_name_is_refused(found):
    """It never leads, even without another leader, and logs both apps. The first app is not affected."""
    each = [{"APP_NAME": "shop"}, {"APP_NAME": "blog"}]
    with ClusterScenario(spec=FAST, replicas=2, replica_env=each, settings=SETTINGS, proxied=False) as scenario:
        scenario.cluster[1].kill()
        shop, blog = scenario.cluster[0], scenario.cluster[1]
        wait_for(lambda: scenario.cluster.leader() is shop, 20, "the first app to lead")
        scenario.more(8, "fast")
        blog.start().wait_for_log("action=leader_seen")
        scenario.nemesis.kill(shop)
        refusal = "action=leading_forbidden reason=other_app"
        blog.wait_for_log(refusal)
        line = next(line for line in blog.log_text().splitlines() if refusal in line)
        assert "shop" in line
        assert "blog" in line
        time.sleep(1)
        assert scenario.cluster.leader() is None
        shop.start()
        wait_for(lambda: scenario.cluster.leader() is shop, 20, "the first app to lead again")
        scenario.more(8, "fast")
        assert blog.alive
        scenario.clean_report([FAST_INTERVAL])
        found(line.partition("ERROR")[2])
