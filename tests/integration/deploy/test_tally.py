"""The count on which the tests with Compose rely finds what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.integration.deploy.stack import tally

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def runs(*seconds: int) -> list[dict[str, str]]:
    return [
        {"id": f"id-{second}", "entry": "every-second", "at": (START + timedelta(seconds=second)).isoformat()}
        for second in seconds
    ]


def test_each_once_is_well():
    assert tally(runs(0, 2, 1, 3), START + timedelta(seconds=3)) == (4, [], [])


def test_a_message_that_runs_again_is_found():
    _, twice, never = tally(runs(0, 1, 1, 2), START + timedelta(seconds=2))

    assert "id-1" in twice
    assert never == []


def test_an_instant_under_two_ids_is_found():
    other = runs(1)[0] | {"id": "another"}

    _, twice, _ = tally([*runs(0, 1, 2), other], START + timedelta(seconds=2))

    assert twice == ["every-second 2026-03-01T12:00:01+00:00"]


def test_an_instant_that_never_ran_is_found_also_the_last():
    _, _, never = tally(runs(0, 2), START + timedelta(seconds=3))

    assert never == [START + timedelta(seconds=1), START + timedelta(seconds=3)]
