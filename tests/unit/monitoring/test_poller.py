"""Reads of the poller: what it reads, and how seldom."""

from types import SimpleNamespace
from typing import Any

import pytest

from ha_beat import events
from ha_beat.clock import from_micros
from ha_beat.monitoring.status import Poller, member_record, why_not_ready
from ha_beat.monitoring.status.unattended import UnattendedReader
from ha_beat.reasons import HealthReason, Verdict
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.membership import ClusterView
from ha_beat.store.server_facts import ServerSettings
from ha_beat.testing import SettableClock
from tests.unit.monitoring.scene import Scene


class Reads:
    """Redis as the poller reads it. It counts the reads of the configuration and the checks of the invariants."""

    def __init__(self) -> None:
        self.settings: list[ServerSettings | None] = []
        self.checks = 0

    def server_settings(self) -> ServerSettings | None:
        """Return the configuration, which the first read does not find."""
        self.settings.append(ServerSettings() if self.settings else None)
        return self.settings[-1]

    def server_ms(self) -> int:
        return 0

    def announce(self, _: Any) -> int:
        return 0

    def view(self, *_: Any, **__: Any) -> ClusterView:
        return ClusterView(0, None, (), "gen", 1, 0, 0, "")

    def check(self) -> None:
        self.checks += 1


@pytest.mark.parametrize(
    ("full", "leads", "settings", "checked"),
    [(True, False, 7, True), (True, True, 7, True), (False, True, 2, True), (False, False, 2, False)],
)
def test_poller_reads_only_what_its_replica_serves_or_leads_with(full, leads, settings, checked):
    """Without HTTP it reads the configuration until it is known. Only a leader then checks the invariants."""
    scene, reads = Scene(), Reads()
    options: Any = {"full": full, "compare_clocks": lambda _: None, "emit": scene.events.append}
    poller: Any = Poller(scene.status, lambda: None, Keys("shop"), scene.clock, **options)
    poller._members = poller._server._members = reads
    poller._checker = reads
    poller._journal = SimpleNamespace(follow=lambda _: None, recent=tuple, terms=lambda _: (), unreadable=())
    poller._unattended = SimpleNamespace(read=lambda _: scene.status.snapshot.unattended)
    if leads:
        scene.lead(seconds=1e6)
    for _ in range(13):
        poller.poll()
        scene.clock.advance(20)
    assert (len(reads.settings), reads.checks > 1) == (settings, checked)
    assert (scene.status.snapshot.view is not None) == full
    assert scene.status.snapshot.server == ServerSettings()


def test_ledger_is_read_seldom_and_only_after_a_while_without_a_leader():
    """It has a row for each entry, and a new leader needs only a moment to load the schedule."""
    clock = SettableClock()
    rows = {"e": LedgerRow(from_micros(0), Verdict.ENQUEUED, following=from_micros(0)).encoded()}
    began, reads, found = clock.elapsed(), [], []

    def read() -> dict[str, str]:
        reads.append(round(clock.elapsed() - began))
        return rows

    ledger: Any = SimpleNamespace(read=read)
    reader = UnattendedReader(ledger, clock)
    for second in range(60):
        view: Any = SimpleNamespace(taken_up=30 <= second < 35, server_ms=1)
        found.append(reader.read(view).due)
        clock.advance(1)
    assert reads == [10, 25, 45]
    assert found == [0] * 10 + [1] * 20 + [0] * 15 + [1] * 15


def test_member_record_never_names_redis_as_unreachable():
    """A record that is read is in Redis. The last poll may have failed."""
    scene = Scene()
    scene.status.memory(events.LeaseUnreachable("refused", leading=False))
    assert set(why_not_ready(scene.status)) == {HealthReason.REDIS_UNREACHABLE}
    assert member_record(scene.status).not_ready == {}
