"""Guards of the protocol, each with the rule it serves, its mutant and the test that fails without it.

`guards.toml` has the table.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import ALWAYS, CALL, DROP, DROP_FIRST, DROP_LAST, NEVER, REPLACE, Mutant

SCENARIOS = "tests/faults/test_guards.py"
_CHANGES = {
    "ALWAYS": ALWAYS,
    "CALL": CALL,
    "DROP": DROP,
    "DROP_FIRST": DROP_FIRST,
    "DROP_LAST": DROP_LAST,
    "NEVER": NEVER,
}


@dataclass(frozen=True)
class Guard:
    """`rule`: its number in `docs/rules.md`. `test`: the id of the test that fails without the guard."""

    rule: int
    name: str
    mutant: Mutant
    test: str

    @property
    def scenario(self) -> str:
        """Name of its scenario; empty if another test watches it."""
        return self.test.partition("[")[2].rstrip("]") if self.test.startswith(SCENARIOS) else ""


def _guard(rule: int, name: str, change: str, markers: str, test: str, files: Mapping[str, str]) -> Guard:
    kind, _, source = change.partition(" ")
    mutant = Mutant(REPLACE(source) if kind == "REPLACE" else _CHANGES[kind], *markers.split())
    file, _, function = test.partition("::")
    if file == "scenario":
        return Guard(rule, name, mutant, f"{SCENARIOS}::test_the_promise_breaks_without_the_guard[{function}]")
    return Guard(rule, name, mutant, f"tests/{files.get(file, file)}::{function}")


def _load() -> tuple[Guard, ...]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    files = table.pop("files")
    return tuple(
        _guard(int(rule), name, *guard, files) for rule, guards in table.items() for name, guard in guards.items()
    )


GUARDS = _load()
MUTANTS = {guard.name: guard.mutant for guard in GUARDS}

#: Those that `tests.mutation_run` takes out; the others have their scenarios.
WATCHED = tuple(guard for guard in GUARDS if not guard.scenario)
