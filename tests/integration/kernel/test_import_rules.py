"""Import rules: the package keeps the contracts of pyproject.toml, and each contract finds a breach."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

#: Some versions of the linter's libraries print colours without a terminal.
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


def test_every_import_keeps_the_rules():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


#: For each contract of pyproject.toml, lines that break it: the module and what is added to it.
BREACHES = [
    ("Rooms", "settings/definition", "from ha_beat.store import lease"),
    ("Rooms", "election/state_machine", "from ha_beat.dispatch import batch"),
    ("Rooms", "dispatch/batch", "from ha_beat.election import connectivity"),
    ("Rooms", "store/keys", "from ha_beat.settings import kinds"),
    ("Rooms", "clock", "from ha_beat.store import keys"),
    ("Rooms", "new_module", ""),
    ("No cycles between modules", "store/keys", "from ha_beat.store import lease_store"),
    ("Schedule is pure", "schedule/misfire", "from ha_beat import clock"),
    ("Election and dispatch import only the store", "election/connectivity", "from ha_beat.schedule import misfire"),
    ("Election and dispatch import only the store", "dispatch/batch", "from ha_beat.settings import kinds"),
    ("Leader reads no settings", "leader/batches/backoff", "from ha_beat.settings import kinds"),
    ("Monitoring does not know the election", "monitoring/metrics", "from ha_beat.election import elector"),
    ("Guard imports only celery_app and the store", "guard", "from ha_beat.settings import kinds"),
    ("Only the scheduler imports bootstrap", "cli/output", "from ha_beat import bootstrap"),
    ("Django only under ha_beat.django", "clock", "import django.db"),
    ("SQLAlchemy only under ha_beat.sqlalchemy", "row_store/table", "import sqlalchemy"),
    ("Redis only in store, dispatch, celery_app and client", "election/state_machine", "import redis"),
    ("Celery only where a Celery object is handled", "settings/definition", "import celery.app"),
    ("Celery only where a Celery object is handled", "election/state_machine", "from kombu import Connection"),
]


@pytest.mark.parametrize(("contract", "module", "line"), BREACHES)
def test_breach_of_a_contract_is_found(copy_of_the_package: Path, contract: str, module: str, line: str):
    with (copy_of_the_package / "ha_beat" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(copy_of_the_package)
    assert result.returncode != 0
    assert f"{contract} BROKEN" in IN_COLOUR.sub("", result.stdout)


def test_every_contract_has_a_breach_above():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == {contract for contract, *_ in BREACHES}


def test_guard_loads_at_most_25_modules_of_the_package():
    """Every worker process imports it."""
    program = "import sys, ha_beat.guard; print(*(name for name in sys.modules if name.split('.')[0] == 'ha_beat'))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200)
    assert len(result.stdout.split()) <= 25, result.stdout
