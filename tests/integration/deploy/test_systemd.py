"""The unit for systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[3] / "deploy" / "systemd" / "ha-beat@.service"


def test_systemd_has_no_complaint(tmp_path):
    """A setting that systemd doesn't know is only a line in its log, and has no effect."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd here")
    text = UNIT.read_text()
    assert "ExecStart=/srv/%i/venv/bin/celery " in text
    unit = tmp_path / "ha-beat@shop.service"
    unit.write_text(text.replace("/srv/%i/venv/bin/celery", "/bin/true"))

    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_little_is_open_to_it():
    """By systemd's own reckoning, from 0 (shut) to 100."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd here")
    command = [analyze, "security", "--offline=yes", "--no-pager", "--threshold=25", str(UNIT)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_told_to_stop_by_sigterm_and_comes_back():
    lines = UNIT.read_text().splitlines()

    assert not any(line.startswith("KillSignal=") for line in lines)
    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(lines)
    assert any("--pidfile= " in line for line in lines)
