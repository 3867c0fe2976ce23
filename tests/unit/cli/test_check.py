"""Exit status of `check`, and `status --watch` during an outage."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from ha_beat.cli import command
from ha_beat.cli.celery_command import ha_beat
from ha_beat.cli.status import _await_taking_up
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import HealthReason
from ha_beat.settings import Settings
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView, Member
from ha_beat.testing import SettableClock


def seen(lease: LeaseRecord | None, *members: Member) -> ClusterView:
    return ClusterView(0, lease, members, "gen", 1, 0, 0, "")


def invoke(monkeypatch: pytest.MonkeyPatch, cluster: Any, *args: str) -> Result:
    monkeypatch.setattr(command, "ClusterClient", lambda _: cluster)
    return CliRunner().invoke(ha_beat, args, obj=SimpleNamespace(app=cluster.app))


@pytest.mark.parametrize(
    ("taken_up_after", "not_ready_after", "longest"),
    [(0.0, 99.0, 0.0), (12.0, 99.0, 12.5), (99.0, 2.0, 2.5), (99.0, 99.0, 15.5)],
    ids=["immediately", "after the pause of a failover", "leader is not ready", "never"],
)
def test_check_waits_for_a_leader_that_is_ready(taken_up_after: float, not_ready_after: float, longest: float) -> None:
    clock = SettableClock()
    began = clock.elapsed()

    def view() -> Any:
        past = clock.elapsed() - began
        reasons = {HealthReason.NOT_TAKEN_UP: ""} if past >= not_ready_after else {}
        return SimpleNamespace(taken_up=past >= taken_up_after, leading_member=SimpleNamespace(not_ready=reasons))

    cluster: Any = SimpleNamespace(clock=clock, settings=Settings(cluster="c", lease_ttl=10.0), view=view)
    assert _await_taking_up(cluster, view()).taken_up == (taken_up_after < 15)
    assert clock.elapsed() - began <= longest


def test_check_does_not_wait_for_a_leader_of_another_app(monkeypatch):
    lease = LeaseRecord("other", 1, state="held", fingerprint="their app", ttl_ms=10_000)
    clock, app = SettableClock(), Celery("our app", set_as_current=False)
    parts = {"clock": clock, "settings": Settings(cluster="c"), "view": lambda: seen(lease, Member("other"))}
    began = clock.elapsed()
    checked = invoke(monkeypatch, SimpleNamespace(app=app, **parts), "check")
    assert (checked.exit_code, "their app" in checked.output) == (1, True)
    assert clock.elapsed() == began


@pytest.mark.parametrize(
    ("member", "paused", "status"),
    [
        ({"overdue_ms": 60_000}, "", 0),
        ({"overdue_ms": 60_001}, "", 1),
        ({"overdue_ms": 60_001}, '{"since_ms": 1}', 0),
        ({"not_ready": {"broker_unreachable": "refused"}}, "", 1),
        ({"taken_up": False, "not_ready": {"not_taken_up": ""}}, "", 1),
    ],
    ids=["late", "too late", "paused", "not ready", "not loaded"],
)
def test_check_fails_if_the_leader_does_not_keep_up(monkeypatch, member, paused, status):
    lease = LeaseRecord("one", 1, state="held", ttl_ms=10_000)
    view = replace(seen(lease, Member("one", "leader", **{"taken_up": True, **member})), paused=paused)
    parts = {"clock": SettableClock(), "settings": Settings(cluster="c"), "ledger": SimpleNamespace(read=dict)}
    cluster = SimpleNamespace(app=Celery(set_as_current=False), view=lambda: view, **parts)
    assert invoke(monkeypatch, cluster, "check").exit_code == status


def test_watch_survives_an_outage_that_begins_between_two_reads(monkeypatch):
    """Without a leader the ledger is read after the view."""
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    def fail() -> None:
        raise StoreUnavailable("connection lost")

    cluster = SimpleNamespace(
        app=Celery(set_as_current=False),
        clock=SimpleNamespace(sleep=sleep),
        settings=Settings(cluster="c"),
        redis_name="redis://",
        view=lambda: seen(None),
        journal=SimpleNamespace(newest=lambda _: []),
        ledger=SimpleNamespace(read=fail),
    )
    watched = invoke(monkeypatch, cluster, "status", "--watch")
    assert (watched.exit_code, watched.output.count("connection lost"), len(waits)) == (0, 2, 2)
    assert invoke(monkeypatch, cluster, "status").exit_code == 2
