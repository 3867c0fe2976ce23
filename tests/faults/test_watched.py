"""Each guard of `tests.guards` is removed under the test that watches it. That test has to fail, without other
errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.cluster import base_environment
from tests.guards import WATCHED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, int]]:
    """Run all guards in one process that forks for each, and return their counts."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.mutation_run"]
    done = subprocess.run(
        command, cwd=root, env=base_environment(), capture_output=True, text=True, timeout=1400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {str(line.pop("name")): line for line in lines}


@pytest.mark.parametrize("name", [guard.name for guard in WATCHED])
def test_removed_guard_fails_its_test(name: str, outcomes: dict[str, dict[str, int]]):
    counts = outcomes[name]
    assert counts.get("failed"), counts
    assert set(counts) <= {"runs", "failed", "passed"}, counts


def test_every_guard_is_taken_out_once(outcomes: dict[str, dict[str, int]], figure):
    again = [name for name, counts in outcomes.items() if counts["runs"] > 1]
    figure(f"{len(outcomes)} guards were taken out one by one, and each was missed by its test; retried: {again}")
