"""Redis stops and returns with its data: no replica exits, dispatch resumes, and no message is sent twice."""

import time
from datetime import UTC, datetime

import pytest

from tests.faults.checker import Event, Instants, instant
from tests.faults.scenario import ClusterScenario, due_times
from tests.support.servers import wait_for

#: Seconds from the stop of Redis to an occurrence that is due afterwards. The replicas have noticed the stop by then;
#: an occurrence that is due before they notice is in doubt.
LEAD = 1.5


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2.0, 15.0])
def test_replicas_outlive_an_outage_of_redis(seconds: float, figure):
    """An occurrence due during the outage runs once after it; all others have a message or a verdict."""
    for due_at in due_times(6.0, 30.0):
        spec = {"fast": {"every": 0.2}, "within": {"every": 3600, "first": due_at}}
        with ClusterScenario(spec=spec, proxied=False) as scenario:
            leader = scenario.begin()
            if time.time() > due_at - LEAD:
                continue
            time.sleep(due_at - time.time() - LEAD)
            assert scenario.history.messages("within") == []
            scenario.nemesis.redis_stop(seconds)
            resumed = outlived(scenario, datetime.fromtimestamp(due_at, UTC))
            assert scenario.cluster.leader() is leader, "another replica took the lease while its holder was waiting"
            figure(f"Redis away for {seconds:g} s: dispatch resumed {resumed:.2f} s after it was back; 0 duplicates")
            return


def outlived(scenario: ClusterScenario, due_at: datetime) -> float:
    """Check the run after an outage during the occurrence of `within`; return the seconds until the first message."""
    up = scenario.history.faults("redis_stop")[-1]["t"]

    def dispatched_since() -> list[Event]:
        """Exclude a message that may have been in the queue when Redis stopped."""
        return [m for m in scenario.history.messages("fast") if m["t"] > up and instant(m["scheduled_at"]) > due_at]

    # Dispatch waits after a restart, because another replica might still trust an old primary.
    back = wait_for(dispatched_since, 60, "a message after the outage")[0]
    scenario.history.wait_for_messages(1, 30, entry="within")
    scenario.more(10, "fast", 10)
    scenario.cluster.assert_all_alive()
    assert [replica.starts for replica in scenario.cluster] == [1, 1, 1]
    scenario.clean_report([*scenario.intervals, Instants("within", (due_at,))])
    (message,) = scenario.history.messages("within")
    assert message["t"] > up
    return float(back["t"] - up)
