"""Celery's own tests of ``celery.beat``, run with :class:`HAScheduler` in place of its ``Scheduler``.

``python -m tests.celery_tests`` downloads the source of the installed Celery with pip, and ends with status 1 if other
tests fail than those that ``NOT_PASSED`` lists.
"""

import os
import re
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.integration.scheduler.test_differences import NOT_PASSED
from tests.support.commands import output, run
from tests.support.servers import RedisServer

HEAD = """
import pytest

from ha_beat.scheduler import HAScheduler


@pytest.fixture(autouse=True)
def threads_not_lingering():
    # A scheduler has threads until it is closed.
    yield


"""


def main() -> int:
    with tempfile.TemporaryDirectory() as made, RedisServer() as server:
        folder = Path(made)
        # The broker of these tests is in memory.
        environment = {**os.environ, "HA_BEAT_REDIS_URL": server.url}
        command = (
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rf",
            "--tb=no",
            "-c",
            "pytest.ini",
            "t/unit/app/test_ours.py",
        )
        done = run(*command, cwd=_prepared(folder), env=environment, timeout=1800)
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))
    print(done.stdout.splitlines()[-1])
    for kind, names in (("fails", failed - set(NOT_PASSED)), ("passes", set(NOT_PASSED) - failed)):
        for name in sorted(names):
            print(f"{name} {kind}, contrary to the list")
    return int(failed != set(NOT_PASSED))


def _prepared(folder: Path) -> Path:
    """Return a folder with Celery's tests, and with those of beat changed to ``HAScheduler``."""
    source = f"celery=={version('celery')}"
    output(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "celery", source, "-d", folder)
    (archive,) = folder.glob("celery-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    tests = folder / archive.name.removesuffix(".tar.gz") / "t"
    own = (tests / "unit" / "app" / "test_beat.py").read_text()
    changed = re.sub(r"\bbeat\.Scheduler\b", "HAScheduler", own).replace(
        "celery.HAScheduler", "ha_beat.scheduler.HAScheduler"
    )
    (tests / "unit" / "app" / "test_ours.py").write_text(HEAD + changed)
    # Away from the package's source, which would be imported instead of the installed one.
    tests.rename(folder / "t")
    (folder / "pytest.ini").write_text("[pytest]\npython_classes = test_*\n")
    return folder


if __name__ == "__main__":
    sys.exit(main())
