"""Views of the demo's state."""

import io

import pytest
from rich.console import Console

from ha_beat.demo.live import LiveView
from ha_beat.demo.tally import Counts, FaultKind, Run, Takeover
from ha_beat.demo.view import DemoState, ReplicaRow, View, percentile, summary

RUN = Run("second", 1_760_000_000_123_000, "id", 42, "worker-1", 1_760_000_000_135_000)


def state(*, duplicates: int = 0, missed: int = 0, arrived: int = 34) -> DemoState:
    return DemoState(
        elapsed_s=61.0,
        left_s=None,
        replicas=tuple(ReplicaRow(f"beat-{n}", n, "standby") for n in range(1, 4)),
        counts=Counts(arrived, duplicates, missed, coalesced=2, skipped=0, off_grid=0, takeovers=9),
        takeovers=tuple(Takeover(n, "beat-2", "beat-1", FaultKind.KILL, 0.2, 0.5) for n in range(9)),
        lateness_s=(0.004, 0.3),
        next_step="kill the leader",
    )


@pytest.mark.parametrize("height", [24, 40, 80])
def test_live_view_fits_the_terminal(height):
    console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
    view = LiveView(console)
    for number in range(30):
        view.note(number, "an event that takes more than one line of a terminal of eighty columns " * 2)
        view.ran(number, RUN, duplicate=False)
    view.close()
    assert len(console.render_lines(view.render(state()))) <= height


def test_live_view_shows_counts_and_roles():
    console = Console(file=io.StringIO(), width=120, height=50)
    view = LiveView(console)
    view.update(state(duplicates=7))
    view.close()
    assert all(text in console.file.getvalue() for text in ("duplicates 7", "beat-3"))


def test_plain_view_marks_a_duplicate(capsys):
    View().ran(1.0, RUN, duplicate=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert all(text in line for text in ("DUPLICATE", "12 ms late"))


def test_summary_names_a_failure_and_claims_no_success_without_runs():
    assert "nothing was enqueued twice" in summary(state())[-1]
    for failed in (state(duplicates=1), state(missed=1)):
        assert "FAILED" in summary(failed)[-1]
    assert not any("nothing was enqueued twice" in line for line in summary(state(arrived=0)))


@pytest.mark.parametrize(
    ("values", "share", "found"), [((1.0, 2.0), 0.5, 1.0), ((1.0, 2.0, 3.0), 1.0, 3.0), ((), 0.5, 0.0)]
)
def test_percentile_is_one_of_the_values(values, share, found):
    assert percentile(values, share) == found
