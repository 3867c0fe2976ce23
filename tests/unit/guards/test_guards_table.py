"""The table of rules and guards is about what there is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.guards import SCENARIOS, WATCHED, Guard, guards
from tests.mutants import MUTANTS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rules.md").read_text("utf-8")
RULES = 20


@cache
def names_in(path: Path) -> frozenset[str]:
    return frozenset(
        node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
    )


@pytest.mark.parametrize("guard", guards(), ids=lambda guard: guard.name)
def test_a_guard_can_be_taken_out_and_its_test_exists(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever moves the guarded line has to take its mutant along."""
    guard.mutant.apply(monkeypatch.setattr)
    path, _, test = guard.test.partition("::")
    assert test.partition("[")[0] in names_in(ROOT / path)


def test_names_are_used_once_and_every_mutant_has_its_rule() -> None:
    names = [guard.name for guard in guards()]
    assert len(set(names)) == len(names)
    assert list(SCENARIOS) == list(MUTANTS)
    assert len(WATCHED) > 60


def test_the_page_has_every_rule_and_every_rule_its_guard() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \| [^|]+ \((?:M|R|A)", PAGE, re.MULTILINE)]
    assert numbers == list(range(1, RULES + 1))
    assert {guard.rule for guard in guards()} == set(numbers)


def test_every_test_that_the_page_names_in_its_text_exists() -> None:
    written = PAGE.partition("<!-- guards:begin -->")[0]
    for name, test in re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", written):
        assert any(test in names_in(path) for path in (ROOT / "tests").rglob(Path(name).name)), (name, test)
