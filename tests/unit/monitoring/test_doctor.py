"""Tests of `doctor` for replicas that differ. `tests/integration/cli` runs it on a real cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ha_beat.monitoring.doctor import _differences


def view(**schedules: str) -> Any:
    members = [
        SimpleNamespace(id=name, version="1.0", schedule=schedule, fingerprint="shop")
        for name, schedule in schedules.items()
    ]
    return SimpleNamespace(members=members)


def test_differing_schedules_are_listed_by_replica() -> None:
    """A digest alone would not show which machine differs."""
    (found,) = _differences(view(a="1f", b="2e", c="1f"))
    assert found.level == "warn"
    assert "schedule, which is normal only during a deploy: 1f on a, c; 2e on b" in found.text


def test_equal_and_unknown_schedules_are_no_difference() -> None:
    assert list(_differences(view(a="1f", b="1f", c=""))) == []
