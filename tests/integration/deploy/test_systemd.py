"""Systemd unit."""

import shutil

import pytest

from tests.support.commands import DEPLOY, output, run

UNIT = DEPLOY / "systemd" / "ha-beat@.service"


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    return found or pytest.skip("systemd is not installed")


def test_systemd_accepts_the_unit(analyze, tmp_path):
    """systemd only logs unknown settings."""
    text = UNIT.read_text()
    assert "ExecStart=/srv/%i/venv/bin/celery " in text
    unit = tmp_path / "ha-beat@shop.service"
    unit.write_text(text.replace("/srv/%i/venv/bin/celery", "/bin/true"))
    done = run(analyze, "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_exposure_of_the_unit_is_low(analyze):
    """systemd's score ranges from 0 (no exposure) to 100."""
    output(analyze, "security", "--offline=yes", "--no-pager", "--threshold=25", UNIT)


def test_unit_stops_by_sigterm_and_restarts():
    lines = UNIT.read_text().splitlines()
    assert not any(line.startswith("KillSignal=") for line in lines)
    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(lines)
    assert any("--pidfile= " in line for line in lines)
