"""Commands that a test runs to their end, and the paths that they run in."""

import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def run(*command: object, timeout: float = 200, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output. Raises subprocess.TimeoutExpired."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout, **options)


def output(*command: object, **options: Any) -> str:
    """Run a command, assert that it succeeds, and return what it wrote to stdout."""
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
