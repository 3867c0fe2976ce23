"""What is answered to which request."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ha_beat import events
from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.status import Snapshot
from ha_beat.reasons import EntryFault, TermStart
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView
from tests.integration.monitoring.support import Scene


def view(**lease: object) -> ClusterView:
    record = LeaseRecord(**{"holder": "beat-1:ffffff", "epoch": 5, "state": "held", "fingerprint": "shop", **lease})
    return ClusterView(1_800_000_000_000, record, (), "gen", 5, 0, 0, "")


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.status.snapshot = Snapshot(view=view(), polled_at=scene.clock.elapsed(), unreachable="")
    return scene


def statuses(scene: Scene) -> dict[str, int]:
    site = scene.site()
    return {path: site.answer("GET", path).status for path in ("/livez", "/readyz", "/leader")}


def test_a_standby_that_could_lead_is_healthy_and_not_the_leader(scene: Scene):
    assert statuses(scene) == {"/livez": 200, "/readyz": 200, "/leader": 503}


def test_a_leader_says_so(scene: Scene):
    scene.lead(epoch=9)
    assert statuses(scene) == {"/livez": 200, "/readyz": 200, "/leader": 200}
    assert json.loads(scene.site().answer("GET", "/leader").body)["epoch"] == 9


def test_without_redis_the_process_lives_but_could_not_lead(scene: Scene):
    """A restart would not bring Redis back: only readiness may fail."""
    scene.status.memory(events.LeaseUnreachable("refused", leading=False))
    assert statuses(scene) == {"/livez": 200, "/readyz": 503, "/leader": 503}
    assert b"refused" in scene.site().answer("GET", "/readyz").body
    scene.status.memory(events.LeaseReachable(3.0))
    assert statuses(scene)["/readyz"] == 200


def test_a_leader_within_its_trust_stays_ready_while_redis_is_away(scene: Scene):
    scene.lead()
    scene.status.memory(events.LeaseUnreachable("refused", leading=True))
    assert statuses(scene) == {"/livez": 200, "/readyz": 200, "/leader": 200}


def test_a_hung_main_loop_is_not_alive(scene: Scene):
    scene.election.idle = 15.1
    assert statuses(scene) == {"/livez": 503, "/readyz": 503, "/leader": 503}
    assert b"not live: stalled: " in scene.site().answer("GET", "/livez").body


def test_a_dead_election_thread_is_not_alive(scene: Scene):
    scene.election.running = False
    assert statuses(scene)["/livez"] == 503


def test_a_replica_whose_schedule_cannot_be_read_is_not_ready(scene: Scene):
    """It would win an election and enqueue nothing."""
    scene.status.last_error = "OperationalError: connection to postgres://u:pw@db failed"
    assert statuses(scene) == {"/livez": 200, "/readyz": 503, "/leader": 503}
    assert b"postgres://***@db" in scene.site().answer("GET", "/readyz").body


def test_before_redis_has_been_asked_nobody_is_ready():
    assert statuses(Scene()) == {"/livez": 200, "/readyz": 503, "/leader": 503}


def test_a_replica_of_another_app_is_not_ready(scene: Scene):
    scene.status.snapshot = replace(scene.status.snapshot, view=view(fingerprint="another app"))
    assert statuses(scene)["/readyz"] == 503
    scene.status.snapshot = replace(scene.status.snapshot, view=view())
    scene.status.memory(events.LeadingForbidden("the cluster name belongs to another app"))
    assert b"belongs to another app" in scene.site().answer("GET", "/readyz").body
    scene.status.memory(events.TermStarted(1, "", TermStart.NO_LEASE))
    assert statuses(scene)["/readyz"] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
@pytest.mark.parametrize("path", ["/", "/livez", "/status", "/events"])
def test_nothing_can_be_changed(scene: Scene, method: str, path: str):
    answer = scene.site().answer(method, path)
    assert answer.status == 405
    assert ("Allow", "GET, HEAD") in answer.headers


def test_unknown_paths_are_told_what_there_is(scene: Scene):
    answer = scene.site().answer("GET", "/../etc/passwd")
    assert answer.status == 404
    assert b"/livez" in answer.body


def test_no_answer_contains_credentials(scene: Scene):
    """Exceptions of clients quote URLs."""
    secret = "Error 111 connecting to rediss://admin:hunter2@redis:6379/0"
    scene.status.memory(events.LeaseUnreachable(secret, leading=False))
    scene.status.memory(events.LeadingForbidden(secret))
    scene.status.memory(events.InvariantBroken("rule", "subject", secret))
    scene.lead()
    scene.status.memory(events.EntryFailed("nightly", EntryFault.REFUSED, secret))
    for leading in (True, False):
        if not leading:
            scene.election.term = None
        site = scene.site()
        for path in ("/livez", "/readyz", "/leader", "/status", "/metrics", "/", "/events"):
            body = site.answer("GET", path).body + site.update()
            assert b"hunter2" not in body, path
    assert b"rediss://***@redis" in scene.site().answer("GET", "/status").body


def test_every_answer_forbids_what_a_browser_should_not_do(scene: Scene):
    site = scene.site()
    for path in ("/livez", "/readyz", "/leader", "/status", "/metrics", "/", "/events", "/nowhere"):
        headers = dict(site.answer("GET", path).all_headers())
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_the_page_loads_nothing_from_elsewhere(scene: Scene):
    html = scene.site().answer("GET", "/").body.decode()
    outside = [part for part in html.split('"') if part.startswith(("http:", "https:", "//")) and "w3.org" not in part]
    assert outside == []


def test_a_dear_answer_is_made_once_in_a_while(scene: Scene):
    """Thousands of requests for the metrics cost as much as a few."""
    made = []
    site = Site(scene.status, lambda: made.append(1) or b"metrics", scene.clock)  # type: ignore[func-returns-value]
    for _ in range(50):
        assert site.answer("GET", "/metrics").body == b"metrics"
    assert len(made) == 1
    scene.clock.seconds += 1
    site.answer("GET", "/metrics")
    assert len(made) == 2


def test_an_answer_that_cannot_be_made_is_a_503(scene: Scene):
    def fail() -> bytes:
        raise RuntimeError("redis://u:hunter2@h")

    answer = Site(scene.status, fail, scene.clock).answer("GET", "/metrics")
    assert answer.status == 503
    assert b"hunter2" not in answer.body
