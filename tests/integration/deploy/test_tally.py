"""Tally of the Compose tests: it detects duplicates and losses."""

from datetime import UTC, datetime, timedelta

from tests.integration.deploy.stack import tally

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def runs(*seconds: int) -> list[dict[str, str]]:
    return [
        {"id": f"id-{second}", "entry": "every-second", "at": (START + timedelta(seconds=second)).isoformat()}
        for second in seconds
    ]


def test_tally_of_each_instant_once_is_clean():
    assert tally(runs(0, 2, 1, 3), START + timedelta(seconds=3)) == (4, [], [])


def test_tally_finds_duplicates_and_losses():
    _, twice, never = tally(runs(0, 1, 1, 2), START + timedelta(seconds=2))
    assert "id-1" in twice
    assert never == []
    another_id = runs(1)[0] | {"id": "another"}
    _, twice, _ = tally([*runs(0, 1, 2), another_id], START + timedelta(seconds=2))
    assert twice == ["every-second 2026-03-01T12:00:01+00:00"]
    _, _, never = tally(runs(0, 2), START + timedelta(seconds=3))
    assert never == [START + timedelta(seconds=1), START + timedelta(seconds=3)]
