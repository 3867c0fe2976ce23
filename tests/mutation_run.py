"""Run of the mutants: each guard is removed in a fork of this process, and the test that has to fail runs.

    python -m tests.mutation_run [NAME...]

Prints one JSON line for each guard: its name, the number of runs, and the numbers of passed, failed and broken tests
in the last run. A test that depends on a race may pass by chance, so it runs up to three times.
"""

import json
import os
import sys
from collections import Counter
from importlib import import_module
from typing import Any

import pytest

from tests.guards import WATCHED, Guard
from tests.support.commands import ROOT

RUNS = 3


class Outcomes:
    """Pytest plugin that counts outcomes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self.counts[report.outcome if report.when == "call" else f"{report.when} {report.outcome}"] += 1


def run(guard: Guard) -> dict[str, int]:
    guard.mutant.apply()
    outcomes = Outcomes()
    sys.stdout = sys.stderr  # only the parent prints to stdout
    pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", guard.test], plugins=[outcomes])
    return dict(outcomes.counts)


def in_a_fork(guard: Guard) -> dict[str, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.dup2(2, 1)
            os.write(writing, json.dumps(run(guard)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        written = pipe.read()
    os.waitpid(child, 0)
    return json.loads(written) if written else {"ended": 1}


def removed(guard: Guard) -> dict[str, int]:
    for runs in range(1, RUNS + 1):
        counts = {"runs": runs, **in_a_fork(guard)}
        if set(counts) != {"runs", "passed"}:
            break
    return counts


def main(*names: str) -> None:
    unknown = set(names) - {guard.name for guard in WATCHED}
    if unknown:
        raise SystemExit(f"no guard of tests/guards.toml has this name: {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    # A failed test is the wanted result: it must not be rerun.
    os.environ.pop("PYTEST_ADDOPTS", None)
    for guard in WATCHED:
        for marker in guard.mutant.markers():
            if marker.module:
                import_module(marker.module)  # once for all forks
    for module in (
        "celery.app.amqp",
        "celery.beat",
        "fakeredis",
        "hypothesis",
        "ha_beat.scheduler",
        "tests.support.servers",
    ):
        import_module(module)
    for guard in WATCHED:
        if not names or guard.name in names:
            print(json.dumps({"name": guard.name, **removed(guard)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
