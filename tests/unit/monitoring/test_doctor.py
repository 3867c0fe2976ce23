"""Tests of what `doctor` reports when replicas differ. `tests/integration/cli` runs it on a real cluster."""

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


def test_who_has_which_is_said() -> None:
    """A digest alone would tell nobody which machine to look at."""
    (found,) = _differences(view(a="1f", b="2e", c="1f"))
    assert found.level == "warn"
    assert "schedule, which is normal only during a deploy: 1f on a, c; 2e on b" in found.text


def test_what_is_alike_or_not_told_is_no_difference() -> None:
    assert list(_differences(view(a="1f", b="1f", c=""))) == []
