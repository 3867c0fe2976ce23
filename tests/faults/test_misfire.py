"""Occurrences that are overdue after some seconds without a leader, under each misfire policy."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.faults.checker import instant
from tests.faults.scenario import ClusterScenario

pytestmark = pytest.mark.slow

Run = tuple[ClusterScenario, datetime]

DOWN = 6.0
SPEC = {
    "fast": {"every": 0.2},
    "once": {"every": 1},
    "skip": {"every": 1, "options": {"ha_beat": {"misfire": "skip", "misfire_grace": 1.5}}},
    "all": {"every": 1, "options": {"ha_beat": {"misfire": "all"}}},
    "bounded": {"every": 1, "options": {"ha_beat": {"misfire": "all", "misfire_limit": 2}}},
    "graced": {"every": 1, "options": {"ha_beat": {"misfire": "all", "misfire_grace": 2.5}}},
}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Yield a scenario in which every replica was dead for a while, and the start of that time."""
    with ClusterScenario(spec=SPEC, replicas=2, proxied=False, settings={"lease_ttl": 3}) as scenario:
        scenario.begin()
        scenario.history.wait_for_messages(3, 20, "all")
        with scenario.nemesis.during("no_replica"):
            for replica in scenario.cluster:
                replica.kill()
            gone = datetime.now(UTC)
            time.sleep(DOWN)
            scenario.cluster.heal()
            scenario.cluster.wait_for_leader()
        so_far = {name: len(scenario.history.messages(name)) for name in SPEC}
        for name, count in so_far.items():
            scenario.history.wait_for_messages(count + 3, 30, name)
        time.sleep(0.5)
        yield scenario, gone


def missed(run: Run, entry: str) -> tuple[list[datetime], int, set[str]]:
    """Return, for occurrences due before the catch-up: instants enqueued, number skipped, and reasons."""
    scenario, gone = run
    own = [r for r in scenario.cluster.journal() if (r.get("entry"), r.get("verdict")) == (entry, "enqueued")]
    # A slow replica catches up long after it has the lease.
    caught_up = min(record["ms"] for record in own if instant(record["at"]) > gone) / 1000
    back = datetime.fromtimestamp(caught_up, UTC)
    sent = [due for m in scenario.history.messages(entry) if gone < (due := instant(m["scheduled_at"])) <= back]
    skips = [s for s in scenario.journal_skips() if s.entry == entry and s.last > gone]
    return sent, sum(s.count for s in skips), {s.reason for s in skips}


def test_every_occurrence_has_its_verdict(run: Run, found):
    found(run[0].clean_report(run[0].intervals))


def test_all_runs_each_missed_occurrence_in_order(run: Run):
    """Each message names the time at which it was due, not the time of the catch-up."""
    scenario, gone = run
    sent = [due for m in scenario.history.messages("all") if (due := instant(m["scheduled_at"])) > gone]
    assert missed(run, "all")[1:] == (0, set())
    assert sent == sorted(set(sent))
    assert len(sent) >= DOWN - 1


@pytest.mark.parametrize(
    ("entry", "sent", "skipped", "reasons"),
    [
        # One may fall due between the decision and the dispatch.
        ("once", range(1, 3), DOWN - 2, {"coalesced"}),
        ("skip", range(4), DOWN - 3, {"misfire_grace", "missed"}),
        ("bounded", range(4), DOWN - 4, {"misfire_limit"}),
        ("graced", range(5), DOWN - 5, {"misfire_grace"}),
    ],
)
def test_policy_bounds_the_missed_occurrences_that_run(run: Run, entry, sent, skipped, reasons):
    runs, count, why = missed(run, entry)
    assert len(runs) in sent
    assert count >= skipped
    assert set() < why <= reasons


@pytest.mark.parametrize("deadline", [None, 20])
def test_crontab_past_its_starting_deadline_is_not_run(deadline: int | None):
    spec = {"fast": {"every": 0.2}, "hourly": {"cron": f"{datetime.now(UTC).minute}"}}
    config = {} if deadline is None else {"beat_cron_starting_deadline": deadline}
    with ClusterScenario(spec=spec, replicas=1, proxied=False, config=config, settings={"lease_ttl": 3}) as scenario:
        scenario.begin()
        replica = scenario.cluster[0]
        replica.terminate()
        ledger = scenario.cluster.key("ledger")
        row = str(scenario.redis.admin.hget(ledger, "e:hourly"))
        base = row.partition('"base":')[2].partition(",")[0]
        scenario.redis.admin.hset(ledger, "e:hourly", row.replace(base, str(int(base) - 90 * 60 * 1_000_000)))
        time.sleep(max(0.0, 25 - datetime.now(UTC).second))
        replica.start()
        scenario.more(10, "fast")
        assert len(scenario.history.messages("hourly")) == (1 if deadline is None else 0)
