"""Output of the commands, on terminals of several widths and in a pipe."""

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


def test_pipe_gets_every_column_and_one_line_per_row(capsys):
    output.show_table(COLUMNS, [*ROWS, ("odd\nname", "t", 0, "a\n  traceback")], spare=("RUNS", "TASK"))
    assert shown(capsys) == [
        "ENTRY           TASK               RUNS  WHY",
        "nightly-report  proj.tasks.report  7     one two three four five six seven",
        "fast            proj.fast",
        "odd name        t                  0     a traceback",
    ]


def test_narrow_terminal_gets_fewer_columns(monkeypatch, capsys):
    on_terminal(monkeypatch, 80)
    output.show_table(COLUMNS, ROWS, spare=("RUNS", "TASK"))
    assert len(shown(capsys)) == 3
    on_terminal(monkeypatch, 46)
    output.show_table(COLUMNS, ROWS, spare=("RUNS", "TASK"))
    assert [line.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") for line in shown(capsys)] == [
        "ENTRY           WHY",
        "nightly-report  one two three four five six",
        "                seven",
        "fast",
        "(no room for RUNS, TASK; use --json or a pipe for all columns)",
    ]


def test_last_column_is_below_the_others_if_there_is_no_room(monkeypatch, capsys):
    on_terminal(monkeypatch, 24)
    output.show_table(("ENTRY", "WHY"), [("nightly-report", "one two three four five")])
    assert shown(capsys)[1:] == ["nightly-report", "    one two three four", "    five"]


def test_long_text_after_a_mark_is_indented(monkeypatch, capsys):
    on_terminal(monkeypatch, 33)
    output.show_hanging("warn", "persistence: no append-only file is there")
    output.show_hanging("ok  ", "")
    assert shown(capsys) == ["warn  persistence: no append-only", "      file is there", "ok    "]
    monkeypatch.setattr(output, "to_terminal", lambda: False)
    output.show_hanging("warn", "persistence: no append-only file is there")
    assert shown(capsys) == ["warn  persistence: no append-only file is there"]


@pytest.mark.parametrize("columns", [1, 5, 20, 79, 80, 200])
def test_table_is_complete_at_every_width(columns, monkeypatch, capsys):
    on_terminal(monkeypatch, columns)
    output.show_table(COLUMNS, [*ROWS, ("x" * 300, "y", "", "z" * 300)], spare=("RUNS", "TASK"))
    output.show_table(("ALONE",), [("one two three",)])
    text = " ".join(shown(capsys))
    assert all(letter * 300 in text for letter in "xz")
