"""Removal of each guard of `tests.guards`: the test that watches it has to fail, without other errors."""

import json
import sys

import pytest

from tests.faults.cluster import base_environment
from tests.guards import WATCHED
from tests.support.commands import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


Outcomes = dict[str, dict[str, int]]


def mutation_run(*names: str) -> Outcomes:
    """Remove these guards, or all, in one process that forks for each. Return their counts."""
    command = (sys.executable, "-m", "tests.mutation_run", *names)
    done = run(*command, cwd=ROOT, env=base_environment(), timeout=1400)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {str(line.pop("name")): line for line in lines}


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return mutation_run()


@pytest.fixture(scope="module")
def judged() -> Outcomes:
    """Return the counts of the guards that were judged."""
    return {}


@pytest.mark.parametrize("name", [guard.name for guard in WATCHED])
def test_removed_guard_fails_its_test(name: str, outcomes: Outcomes, judged: Outcomes):
    # A rerun of this test removes the guard again.
    counts = judged[name] = outcomes.pop(name, None) or mutation_run(name)[name]
    assert counts.get("failed"), counts
    assert counts.keys() <= {"failed", "passed", "runs"}, counts


def test_every_guard_is_removed(judged: Outcomes, figure):
    again = [name for name, counts in judged.items() if counts["runs"] > 1]
    figure(f"{len(judged)} guards were removed one by one, and the test of each failed; repeated: {again}")
