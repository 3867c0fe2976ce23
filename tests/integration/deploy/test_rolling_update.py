"""Script rolling-update, with stubs for `docker`, `date` and `sleep`."""

import os

import pytest

from tests.support.commands import DEPLOY, run

#: One replica of a service, and a new one that never becomes healthy. Each query of its health takes 20 s.
STUBS = {
    "docker": """case "$*" in
  "compose ps "*) cat "$STUBS/replicas" ;;
  "compose up "*) echo new >>"$STUBS/replicas" ;;
  *oneoff*) for last; do :; done; echo "$last" ;;
  *Health*) echo looked >>"$STUBS/looks"; echo "$HEALTH" ;;
  *) echo "$*" >>"$STUBS/calls" ;;
esac""",
    "date": """echo $((1000000 + 20 * $(wc -l <"$STUBS/looks")))""",
    "sleep": "",
}


@pytest.mark.parametrize(("health", "looks"), [("starting", range(4, 10)), ("unhealthy", range(1, 4))])
def test_replica_that_is_not_healthy_in_time_is_removed(tmp_path, health, looks):
    """The timeout counts seconds, not queries: `docker inspect` may take long on a busy machine."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "replicas").write_text("old\n")
    (tmp_path / "looks").touch()
    path = f"{tmp_path}:{os.environ['PATH']}"
    environ = {"PATH": path, "STUBS": str(tmp_path), "HEALTH": health, "ROLLING_UPDATE_TIMEOUT": "100"}
    done = run(DEPLOY / "rolling-update", env=environ, timeout=60)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["logs --tail 20 new", "rm --force new"]
    assert len((tmp_path / "looks").read_text().splitlines()) in looks
