"""Tests that nox and CI run on the versions that the package supports."""

import ast
import re
import sys
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.support.commands import ROOT, output

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOXFILE = (ROOT / "noxfile.py").read_text()
CI = (ROOT / ".ci" / "run").read_text()


def floors() -> dict[str, Version]:
    """Return the oldest allowed version of each requirement."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [
        line for extra in extras if extra not in {"test", "test-integrations", "dev", "docs"} for line in extras[extra]
    ]
    found = {}
    for requirement in map(Requirement, lines):
        (floor,) = (each.version for each in requirement.specifier if each.operator == ">=")
        found[requirement.name.lower()] = Version(floor)
    return found


def constraints() -> dict[str, Version]:
    lines = (ROOT / "tests" / "constraints-oldest.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): Version(version) for name, version in pairs}


def pythons() -> list[str]:
    (assigned,) = (
        node.value
        for node in ast.parse(NOXFILE).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PYTHONS"
    )
    return list(ast.literal_eval(assigned))


@pytest.mark.parametrize("name", sorted(floors()))
def test_oldest_allowed_version_is_tested(name: str):
    assert constraints()[name] == floors()[name]


def test_sessions_of_nox_are_the_supported_pythons():
    claimed = {
        found[1]
        for classifier in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
    }
    assert set(pythons()) == claimed
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert {f"3.{minor}" for minor in range(30) if f"3.{minor}.99" in allowed} == claimed


def test_ci_runs_existing_sessions():
    run = re.findall(r"^nox -s (.+)$", CI, re.MULTILINE)
    sessions = [node.name for node in ast.parse(NOXFILE).body if isinstance(node, ast.FunctionDef)]
    assert run == ["lint", "oldest", "newest"]
    assert set(run) <= set(sessions)


def test_nox_lists_all_sessions():
    pytest.importorskip("nox", reason="belongs to the extra dev")
    listed = output(sys.executable, "-m", "nox", "--list", cwd=ROOT)
    for session in ("lint", "oldest", "newest", *(f"tests({version})" for version in pythons())):
        assert re.search(rf"^[*-] {re.escape(session)} -> ", listed, re.MULTILINE), session
