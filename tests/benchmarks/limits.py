"""Limits during a burst: lateness of renewals and of an unrelated entry, and the time that a script occupies Redis.

The same figures from the seconds before the burst show the share of the machine.

    python -m tests.benchmarks.limits                    10,000 entries
    python -m tests.benchmarks.limits 5000 --hold 0.5    stop the leader in the burst: the figures must rise

All times are those of Redis: of the lease's record, of the journal's stream and of the slow log.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from ha_beat.store.keys import Keys
from tests.benchmarks.results import Benchmark, Result, arguments
from tests.faults.cluster import BeatCluster
from tests.support.servers import RedisServer

RENEWAL, LATE, LASTED = "renewal late (% of the interval)", "0.2 s entry late, p99 (s)", "duration (s)"
SCRIPT, MEAN = "longest script (s)", "mean script (s)"
COLUMNS = (RENEWAL, LATE, SCRIPT, MEAN, LASTED)
BEFORE, BURST, AIM = "before", "burst", "aim"

_AIMS = {RENEWAL: 20.0, LATE: 0.1, SCRIPT: 0.02, MEAN: 0.02, LASTED: 0.5}

#: Seconds between two renewals, and from the first message of the frequent entries to the burst.
_RENEW, _QUIET = 0.5, 5.0

#: Frequent entries, each due five times a second.
_FREQUENT = 5


def measure(redis: RedisServer, entries: int, hold: float = 0.0) -> list[Result]:
    """Return the figures before a burst of that many entries and in it, and the aims.

    The leader is stopped in the burst for ``hold`` seconds.
    """
    redis.admin.flushall()
    due_at = time.time() + 15 + _QUIET + entries / 500
    often = {"every": 0.2, "n": _FREQUENT, "options": {"queue": "often"}}
    spec = {"burst": {"every": 3600, "first": due_at, "n": entries}, "often": often}
    settings = {"lease_ttl": 4 * _RENEW, "journal_size": 10 * entries}
    with BeatCluster(redis.url, spec=spec, replicas=3, settings=settings, log_level="WARNING") as cluster:
        leader, renewed = cluster.wait_for_leader(), dict[int, float]()
        admin, keys = redis.admin, Keys(cluster.name)

        def watch(until: Callable[[], bool]) -> None:
            while not until():
                seq, ms = admin.hmget(keys.lease, "seq", "renewed_ms")
                renewed[int(seq)] = int(ms) / 1000
                time.sleep(0.01)

        since = due_at - _QUIET
        time.sleep(max(since - time.time(), 0))
        before = _Scripts(admin)
        watch(lambda: time.time() >= due_at)
        quiet, during = before.result(), _Scripts(admin)
        if hold:
            leader.pause()
            time.sleep(hold)
            leader.resume()
        watch(lambda: int(admin.llen("celery")) >= entries)
        scripts = during.result()
        ended = _journal(admin, keys, "burst")[-1][0]
        # The renewal after the burst shows whether it was late.
        watch(lambda: max(renewed.values()) > ended)
        lateness = _journal(admin, keys, "often")
        return [
            Result(BEFORE, entries, _figures(since, due_at, renewed, lateness) | quiet),
            Result(BURST, entries, _figures(due_at, ended, renewed, lateness) | scripts),
            Result(AIM, entries, _AIMS),
        ]


class _Scripts:
    """Scripts that Redis has run since the creation of this object."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin
        admin.config_set("slowlog-max-len", 10_000)
        admin.config_set("slowlog-log-slower-than", 500)
        admin.slowlog_reset()
        admin.config_resetstat()

    def result(self) -> dict[str, float]:
        """Return the longest and the mean time of a script in seconds."""
        slow = [entry["duration"] for entry in self._admin.slowlog_get(10_000) if entry["command"].startswith(b"EVAL")]
        calls = self._admin.info("commandstats").get("cmdstat_evalsha", {"usec_per_call": 0.0})
        return {SCRIPT: max(slow, default=0) / 1e6, MEAN: calls["usec_per_call"] / 1e6}


def _journal(admin: Any, keys: Keys, entry: str) -> list[tuple[float, float]]:
    """Return the time of each verdict of entries with this prefix, and its lateness in seconds."""
    found = []
    for stream_id, fields in admin.xrange(keys.journal):
        at, record = _ms(stream_id) / 1000, json.loads(fields[b"d"] if b"d" in fields else fields["d"])
        if str(record.get("entry")).startswith(entry):
            due_at = datetime.fromisoformat(record.get("at") or record["from"])
            found.append((at, at - due_at.timestamp()))
    return found


def _ms(stream_id: bytes | str) -> int:
    return int((stream_id.decode() if isinstance(stream_id, bytes) else stream_id).partition("-")[0])


def _figures(
    since: float, until: float, renewed: Mapping[int, float], often: Sequence[tuple[float, float]]
) -> Mapping[str, float]:
    """Return the figures between two instants. Renewals and occurrences that overlap them count too.

    ``renewed`` maps the numbers of renewals to their times. Renewals that were not seen share their gap equally.
    """
    gaps = [
        (after - at) / (number - seq)
        for (seq, at), (number, after) in pairwise(sorted(renewed.items()))
        if after > since and at < until
    ]
    late = sorted(lateness for at, lateness in often if at > since and at - lateness < until)
    return {
        RENEWAL: 100 * (max(gaps) - _RENEW) / _RENEW,
        LATE: late[int(0.99 * (len(late) - 1))],
        LASTED: until - since,
    }


def benchmark(sizes: Sequence[int], hold: float = 0.0) -> Benchmark:
    """Run the benchmark for each number of entries."""
    with RedisServer() as redis:
        results = [result for entries in sizes for result in measure(redis, entries, hold)]
    return Benchmark("Limits in a burst, on redis", ["limits", *sizes], "entries", COLUMNS, results)


def main() -> None:
    parser = arguments(__doc__, size=10_000)
    parser.add_argument("--hold", type=float, default=0.0, help="seconds for which the leader is stopped in the burst")
    options = parser.parse_args()
    print(benchmark(options.sizes, options.hold).text())


if __name__ == "__main__":
    main()
