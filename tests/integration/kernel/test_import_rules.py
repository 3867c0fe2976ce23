"""The layers of the package, as pyproject.toml states them, are kept, and the linter bites."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: Some versions of the linter's libraries colour what no terminal shows.
IN_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

ROOT = Path(__file__).parents[3]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def copy_of_the_package(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "ha_beat", tmp_path / "ha_beat", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_module_imports_only_from_layers_below_it():
    """An import that goes up, or a module without a place, fails here with the line that does it."""
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("settings/definition", "from ha_beat.store import lease", "Rooms BROKEN"),
        ("settings/definition", "from ha_beat.leader import planner", "Rooms BROKEN"),
        ("brand_new", "", "Rooms BROKEN"),
        ("clock", "import django.db", "Django only under ha_beat.django BROKEN"),
        ("election/state_machine", "import redis", "Redis only in store, dispatch and the client's two modules BROKEN"),
        ("settings/definition", "import celery.app", "Celery only where a Celery object is handled BROKEN"),
        (
            "election/state_machine",
            "from kombu import Connection",
            "Celery only where a Celery object is handled BROKEN",
        ),
    ],
)
def test_the_linter_finds_each_kind_of_breach(copy_of_the_package: Path, module: str, line: str, contract: str):
    """A rule that nothing can break would hold nothing."""
    with (copy_of_the_package / "ha_beat" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(copy_of_the_package)
    assert result.returncode != 0
    assert contract in IN_COLOUR.sub("", result.stdout)


def test_guard_loads_at_most_25_modules_of_the_package():
    """Every worker process imports it."""
    program = "import sys, ha_beat.guard; print(*(name for name in sys.modules if name.split('.')[0] == 'ha_beat'))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert len(result.stdout.split()) <= 25, result.stdout
