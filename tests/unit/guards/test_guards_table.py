"""Table of rules and guards: each entry names code and a test that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.guards import GUARDS, Guard
from tests.mutants import (
    ALWAYS,
    CALL,
    DROP,
    DROP_FIRST,
    DROP_LAST,
    NEVER,
    REPLACE,
    Change,
    Mutation,
    markers,
    mutate_lua,
)

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rules.md").read_text("utf-8")
RULES = 20


@cache
def names_in(path: Path) -> frozenset[str]:
    return frozenset(
        node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
    )


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_can_be_taken_out_and_its_test_exists(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.mutant.apply(monkeypatch.setattr)
    path, _, test = guard.test.partition("::")
    assert test.partition("[")[0] in names_in(ROOT / path)


def test_every_marker_stands_once_and_has_a_guard() -> None:
    assert {name: places for name, places in markers().items() if len(places) > 1} == {}
    assert set(markers()) == {name for guard in GUARDS for name in guard.mutant.names}


def test_guard_names_are_unique_and_sorted_by_rule() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS) > 120
    assert [guard.rule for guard in GUARDS] == sorted(guard.rule for guard in GUARDS)


@pytest.mark.parametrize(
    ("change", "marked", "mutated"),
    [
        (NEVER, "if a and b:  #", "if False:"),
        (ALWAYS, "if a:\n        pass\n    elif b:  #", "if a:\n        pass\n    elif True:"),
        (DROP, "f(a)  #\n    if b:", "pass\n    if b:"),
        (DROP, "if (\n        a  #\n        and b\n    ):", "if b:"),
        (DROP, "if f(\n        a,\n        key=b,  #\n    ):", "if f(a):"),
        (DROP_FIRST, "if a or b:  #", "if b:"),
        (DROP_LAST, "if a or (b and a):  #", "if a:"),
        (DROP_LAST, "if (\n        b or a  #\n    ):", "if b:"),
        (DROP_LAST, "if (\n        b\n        and a  #\n    ):", "if b:"),
        (REPLACE("b"), "a = f(\n        a\n    )  #\n    if a:", "a = b\n    if a:"),
        (REPLACE("raise"), "a = b  #\n    if a:", "raise\n    if a:"),
        (REPLACE("a"), "if f(\n        key=f(  #\n            b\n        )\n    ):", "if f(key=a):"),
    ],
)
def test_mutation_changes_what_the_marker_marks(change: Change, marked: str, mutated: str) -> None:
    def module(body: str) -> str:
        return f"def f(a, b):\n    {body}\n        return a"

    tree = ast.parse(module(marked))
    line = next(number for number, text in enumerate(module(marked).splitlines(), 1) if text.endswith("#"))
    assert Mutation(tree, line, change).apply() == "f"
    assert ast.unparse(tree) == ast.unparse(ast.parse(module(mutated)))


def test_mutation_of_a_nested_function_names_its_method() -> None:
    tree = ast.parse("class A:\n    def b(self):\n        def c():\n            return 1\n        return c")
    assert Mutation(tree, 4, NEVER).apply() == "A.b"


@pytest.mark.parametrize(
    ("line", "change"), [(1, NEVER), (3, DROP_LAST), (3, REPLACE("unknown_name")), (3, CALL), (5, DROP)]
)
def test_mutation_that_does_not_fit_is_refused(line: int, change: Change) -> None:
    tree = ast.parse("x = 1\ndef f(a):\n    return a\n\n\n")
    with pytest.raises(LookupError):
        Mutation(tree, line, change).apply()


@pytest.mark.parametrize(
    ("change", "line", "mutated"),
    [
        (NEVER, "  if a == b then return 1 end ", "  if false then return 1 end "),
        (NEVER, "  if a == b", "  if false "),
        (ALWAYS, "    or b ~= c", "    or true "),
        (DROP, "  and b", ""),
        (REPLACE("0"), "  number(a[1]) + 1,", "  0 ,"),
        (REPLACE("nil"), "  local d = f(a)", "  local d = nil "),
        (CALL, "redis.pcall('X')", "redis.call('X')"),
    ],
)
def test_mutation_of_a_line_of_lua(change: Change, line: str, mutated: str) -> None:
    assert mutate_lua(line, change).rstrip() == mutated.rstrip()


def test_the_page_has_every_rule_and_every_rule_its_guard() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \| [^|]+ \((?:M|R|A)", PAGE, re.MULTILINE)]
    assert numbers == list(range(1, RULES + 1))
    assert {guard.rule for guard in GUARDS} == set(numbers)


def test_every_test_that_the_page_names_in_its_text_exists() -> None:
    written = PAGE.partition("<!-- guards:begin -->")[0]
    for name, test in re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", written):
        assert any(test in names_in(path) for path in (ROOT / "tests").rglob(Path(name).name)), (name, test)
