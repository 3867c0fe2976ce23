"""Test of the plugin for reruns."""

import os
import sys
from pathlib import Path

from tests.support.commands import ROOT, output

TEST = """
import signal

def test_that_fails_once(request):
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert request.node.execution_count == 2
    assert 0 < left <= 200
"""


def test_each_attempt_has_the_whole_timeout(tmp_path: Path):
    (tmp_path / "test_it.py").write_text(TEST)
    options = ["-p", "tests.support.reruns", "-p", "no:cacheprovider", "--reruns", "1", "--timeout", "200"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    found = output(sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path, cwd=ROOT, env=env)
    assert "1 passed, 1 rerun" in found
