"""Electors in one process, for clusters of more replicas than a test machine can run as beat processes.

    python -m tests.faults.electors URL CLUSTER COUNT NAME

Prints one JSON line for each change of role and runs until it is killed. Each elector has its own connections,
thread and identity, as in a beat process.
"""

import json
import os
import sys
import threading
import time

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.election.elector import Elector
from ha_beat.election.states import Timing
from ha_beat.store.connections import link_to
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.presence import RedisPresence
from ha_beat.store.shadow import Shadow, ShadowFeed

_printing = threading.Lock()


def elector(url: str, cluster: str, name: str, ttl: float = 10.0) -> Elector:
    link, clock, keys = link_to(url, {}, ttl / 4, "key"), SystemClock(), Keys(cluster)

    def emit(event: events.Event) -> None:
        if isinstance(event, events.TermStarted | events.TermEnded):
            with _printing:
                line = {"event": type(event).__name__, "name": name, "epoch": event.epoch, "t": time.monotonic()}
                print(json.dumps(line), flush=True)

    return Elector(
        RedisLeaseStore(link.client, keys),
        RedisPresence(link.client, keys, clock, ttl / 3),
        Replica(name, "localhost", os.getpid(), "0", "app"),
        Timing(ttl=ttl, renew_interval=ttl / 4),
        clock,
        emit,
        follow=ShadowFeed(link.client, keys, Shadow(), clock).poll,
    )


def main(url: str, cluster: str, count: str, name: str) -> None:
    electors = [elector(url, cluster, f"{name}-{number}") for number in range(int(count))]
    for one in electors:
        one.start()
    while True:
        for one in electors:
            one.handle.progress()
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
