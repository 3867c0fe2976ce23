"""`check` while a new leader has not loaded the schedule."""

from types import SimpleNamespace
from typing import Any

import pytest

from ha_beat.cli.status import _await_taking_up
from ha_beat.reasons import HealthReason
from ha_beat.settings import Settings
from ha_beat.testing import SettableClock


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
