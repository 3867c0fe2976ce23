"""Each guard of `tests.guards` is removed under the test that watches it. That test has to fail, without other
errors.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.cluster import base_environment
from tests.guards import WATCHED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


ROOT = Path(__file__).parents[2]

Outcomes = dict[str, dict[str, int]]


def mutation_run(*names: str) -> Outcomes:
    """Remove these guards, or all, in one process that forks for each. Return their counts."""
    command = [sys.executable, "-m", "tests.mutation_run", *names]
    done = subprocess.run(
        command, cwd=ROOT, env=base_environment(), capture_output=True, text=True, timeout=1400, check=False
    )
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
    # Judged once: if this test is run again, so is that guard.
    counts = judged[name] = outcomes.pop(name, None) or mutation_run(name)[name]
    assert counts.get("failed"), counts
    assert counts.keys() <= {"failed", "passed", "runs"}, counts


def test_every_guard_is_taken_out(judged: Outcomes, figure):
    again = [name for name, counts in judged.items() if counts["runs"] > 1]
    figure(f"{len(judged)} guards were taken out one by one, and each was missed by its test; retried: {again}")
