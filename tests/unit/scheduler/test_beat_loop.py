"""Failing turns of the main loop."""

from typing import Any
from unittest.mock import Mock

from ha_beat import events
from ha_beat.beat_loop import BeatLoop
from ha_beat.reasons import TermEnd
from ha_beat.testing import SettableClock

STALL_TIMEOUT = 10.0


def test_leader_steps_down_whenever_turns_fail_for_the_stall_timeout():
    """It may be elected again while its turns still fail."""
    clock, runtime = SettableClock(), Mock()
    handle = runtime.elector.handle
    handle.progress.side_effect = KeyError("a bug")
    handle.wait.side_effect = clock.advance
    loop: Any = BeatLoop(lambda: runtime, STALL_TIMEOUT)
    loop._clock = clock
    stepped_down = []
    for _ in range(25):
        loop.turn()
        stepped_down.append(handle.step_down.call_count)
    assert stepped_down == [0] * 11 + [1] * 12 + [2] * 2
    assert handle.step_down.call_args.args == (TermEnd.SCHEDULER_FAILED,)
    ((failed,), _) = runtime.events.emit.call_args
    assert (type(failed), runtime.events.emit.call_count) == (events.TurnFailed, 1)
    assert "a bug" in runtime.monitoring.status.last_error

    handle.progress.side_effect, handle.term = None, None
    loop.turn()
    assert runtime.monitoring.status.last_error == ""
    clock.advance(STALL_TIMEOUT + 1)
    handle.progress.side_effect, handle.term = KeyError("a bug"), Mock()
    loop.turn()
    assert (runtime.events.emit.call_count, handle.step_down.call_count) == (2, 2)
