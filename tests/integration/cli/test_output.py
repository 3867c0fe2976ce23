"""What the commands print, on a terminal of any width and elsewhere."""

from __future__ import annotations

import pytest

from ha_beat.cli import output

COLUMNS = ("ENTRY", "TASK", "RUNS", "WHY")
ROWS = [
    ("nightly-report", "proj.tasks.report", 7, "one two three four five six seven"),
    ("fast", "proj.fast", None, ""),
]


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(output, "to_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


def test_a_pipe_gets_everything_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """However narrow the terminal of whoever started it is."""
    output.show_table(COLUMNS, [*ROWS, ("odd\nname", "t", 0, "a\n  traceback")], spare=("RUNS", "TASK"))
    assert shown(capsys) == [
        "ENTRY           TASK               RUNS  WHY",
        "nightly-report  proj.tasks.report  7     one two three four five six seven",
        "fast            proj.fast",
        "odd name        t                  0     a traceback",
    ]


def test_a_wide_terminal_gets_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(monkeypatch, 80)
    output.show_table(COLUMNS, ROWS, spare=("RUNS", "TASK"))
    assert len(shown(capsys)) == 3


def test_a_narrow_terminal_gets_no_more_columns_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last column is broken between words, and what was left out is said."""
    on_terminal(monkeypatch, 46)
    output.show_table(COLUMNS, ROWS, spare=("RUNS", "TASK"))
    assert [line.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") for line in shown(capsys)] == [
        "ENTRY           WHY",
        "nightly-report  one two three four five six",
        "                seven",
        "fast",
        "(no room here for RUNS, TASK; --json or a pipe has all)",
    ]


def test_the_last_column_stands_below_where_nothing_is_left_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(monkeypatch, 24)
    output.show_table(("ENTRY", "WHY"), [("nightly-report", "one two three four five")])
    assert shown(capsys)[1:] == ["nightly-report", "    one two three four", "    five"]


def test_what_hangs_on_a_mark_goes_on_below_where_it_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(monkeypatch, 33)
    output.show_hanging("warn", "persistence: no append-only file is there")
    output.show_hanging("ok  ", "")
    assert shown(capsys) == ["warn  persistence: no append-only", "      file is there", "ok    "]
    monkeypatch.setattr(output, "to_terminal", lambda: False)
    output.show_hanging("warn", "persistence: no append-only file is there")
    assert shown(capsys) == ["warn  persistence: no append-only file is there"]


@pytest.mark.parametrize("columns", [1, 5, 20, 79, 80, 200])
def test_no_width_breaks_a_table(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(monkeypatch, columns)
    output.show_table(COLUMNS, [*ROWS, ("x" * 300, "y", "", "z" * 300)], spare=("RUNS", "TASK"))
    output.show_table(("ALONE",), [("one two three",)])
    told = " ".join(shown(capsys))
    assert "x" * 300 in told
    assert "z" * 300 in told
