"""Short turns of the main loop, so that a test need not wait a second for the next one."""

import pytest


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ha_beat.beat_loop._LONGEST_TURN", 0.1)
