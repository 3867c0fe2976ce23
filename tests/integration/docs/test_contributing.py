"""Tests that the contributor's guide names files and symbols that exist, and that tables list every code."""

import ast
import re
from pathlib import Path

import pytest

from ha_beat.reasons import Duty, SkipReason
from tests.support.commands import ROOT

#: `room/module.py`, `room/module.py:Symbol.member` or a path from the top of the repository.
REFERENCE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|lua|yml|json|md|toml))(?::([\w.]+))?`")


def references(page: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / page).read_text("utf-8")
    return sorted({(path, symbol) for path, symbol in REFERENCE.findall(text)})


def symbols(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
            members = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{each.name}" for each in members if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", ["contributing.md", "rules.md"])
def test_every_file_and_symbol_that_a_page_names_exists(page: str):
    named = references(page)
    assert named
    missing = []
    for name, symbol in named:
        paths = [ROOT / name, ROOT / "ha_beat" / name, ROOT / "ha_beat" / "store" / "lua" / name, ROOT / "tests" / name]
        path = next((each for each in paths if each.exists()), None)
        if path is None or (symbol and symbol not in symbols(path)):
            missing.append(f"{name}:{symbol}")
    assert missing == []


def test_every_thread_is_listed():
    started = {
        name
        for path in (ROOT / "ha_beat").rglob("*.py")
        for name in re.findall(r'"(ha_beat-[\w-]+)"', path.read_text("utf-8"))
    }
    assert started == set(re.findall(r"`(ha_beat-[\w-]+)`", (ROOT / "docs" / "contributing.md").read_text("utf-8")))


def test_each_skip_reason_is_decided_where_the_page_says():
    table = (ROOT / "docs" / "contributing.md").read_text("utf-8").partition("| skip reason |")[2].partition("\n\n")[0]
    rows = [[re.findall(r"`([\w/.]+)`", cell) for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    decided = {reason: modules for reasons, modules in rows for reason in reasons}
    assert set(decided) == set(SkipReason)
    for reason, modules in decided.items():
        assert modules
        for module in modules:
            source = (ROOT / "ha_beat" / module).read_text("utf-8")
            assert f"SkipReason.{SkipReason(reason).name}" in source or f"'{reason}'" in source, (reason, module)


@pytest.mark.parametrize(
    ("page", "heading", "codes"),
    [("troubleshooting.md", "## Reasons for a skip", SkipReason), ("monitoring.md", "## Duties", Duty)],
)
def test_table_lists_every_code(page, heading, codes):
    table = (ROOT / "docs" / page).read_text("utf-8").partition(heading)[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(codes)
