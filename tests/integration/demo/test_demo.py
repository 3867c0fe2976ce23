"""``ha-beat demo`` as a user runs it: real replicas, a real worker, an embedded Redis."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import redis
from celery import Celery

pytestmark = pytest.mark.timeout(240)

DEMO = [sys.executable, "-m", "ha_beat.cli.main", "demo"]


@pytest.fixture(autouse=True)
def installed():
    if "ha_beat" not in {point.name for point in entry_points(group="celery.beat_schedulers")}:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("ha-beat is not installed: celery finds its scheduler by an entry point")


@pytest.fixture
def start(tmp_path):
    """Start the demo with its temporary files under ``tmp_path``, which identifies its processes."""
    started = []

    def _start(*arguments: str) -> subprocess.Popen[str]:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([*DEMO, *arguments], env={**os.environ, "TMPDIR": str(tmp_path)}, **output))
        return started[-1]

    yield _start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(40)


def processes_under(folder: Path) -> dict[int, str]:
    """Return the command lines of the processes that work in this folder, by pid."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).startswith(str(folder)):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def assert_nothing_left(folder: Path) -> None:
    assert processes_under(folder) == {}
    assert list(folder.iterdir()) == []


def counts(output: str) -> dict[str, int]:
    """Return the numbers of the summary, by name."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", output, re.MULTILINE)}


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    pytest.fail(f"the demo ended without {text!r}:\n{read}")


@pytest.mark.slow
def test_demo_has_no_duplicates_or_losses_and_leaves_no_process(start, tmp_path):
    process = start("--plain", "--duration", "12", "--seed", "1")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    found = counts(output)
    assert (found["duplicates"], found["missed"]) == (0, 0), output
    assert (found["takeovers"] >= 2, found["ran"] >= 20) == (True, True), output
    assert_nothing_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_demo_while_the_leader_is_paused(start, tmp_path, number):
    process = start("--plain", "--seed", "1")
    read = read_until(process, "paused beat")
    time.sleep(0.2)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0, read + rest
    assert counts(rest)["duplicates"] == 0, rest
    assert_nothing_left(tmp_path)


def test_signal_during_the_start_leaves_no_process(start, tmp_path):
    process = start("--plain", "--duration", "60")
    read_until(process, "are starting")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=100)
    assert "Traceback" not in rest
    assert_nothing_left(tmp_path)


@pytest.mark.slow
def test_duplicate_is_counted(start, tmp_path):
    """The test sends an occurrence of the journal a second time."""
    process = start("--plain", "--duration", "4")
    url = re.search(r"redis://\S+/0", read_until(process, "are starting"))
    assert url
    read = read_until(process, " ran on ")
    client = redis.Redis.from_url(url[0], decode_responses=True)
    journal = [json.loads(fields["d"]) for _, fields in client.xrange("{ha-beat:demo}:journal")]
    record = next(record for record in journal if record.get("verdict") == "enqueued")
    client.close()
    header = {"entry": record["entry"], "scheduled_at": record["at"], "epoch": record["epoch"]}
    with Celery("somebody-else", broker=url[0], set_as_current=False) as app:
        app.send_task("demo.note_run", headers={"ha_beat": header})
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 1, read + rest
    assert counts(rest)["duplicates"] == 1, rest
    assert "DUPLICATE" in rest


@pytest.mark.slow
def test_error_leaves_no_process(start, tmp_path):
    """The embedded Redis is killed."""
    process = start("--plain", "--duration", "60")
    read_until(process, " ran on ")
    servers = ("redis-server", "valkey-server")
    os.kill(next(pid for pid, c in processes_under(tmp_path).items() if c.split()[0].endswith(servers)), signal.SIGKILL)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 1, rest
    assert ("Redis" in rest, "Traceback" in rest) == (True, False)
    assert_nothing_left(tmp_path)
