"""Answers by path and state."""

import json
from dataclasses import replace

import pytest

from ha_beat import events
from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.status import Snapshot
from ha_beat.reasons import EntryFault, ForbiddenReason, TermStart
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView
from tests.unit.monitoring.scene import Scene

PATHS = ("/livez", "/readyz", "/leader", "/status", "/metrics", "/", "/events")
ANOTHER_APP = events.LeadingForbidden(ForbiddenReason.OTHER_APP, "belongs to another app")


def view(fingerprint: str = "shop", state: str = "held") -> ClusterView:
    lease = LeaseRecord("beat-1:ffffff", 5, state=state, fingerprint=fingerprint)
    return ClusterView(1_800_000_000_000, lease, (), "gen", 5, 0, 0, "")


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.status.snapshot = Snapshot(view=view(), polled_at=scene.clock.elapsed(), unreachable="")
    return scene


def statuses(scene: Scene) -> tuple[int, ...]:
    """Return the status of the liveness, the readiness and the leader probe."""
    return tuple(scene.site().answer("GET", path).status for path in ("/livez", "/readyz", "/leader"))


def body(scene: Scene, path: str) -> bytes:
    return scene.site().answer("GET", path).body


def test_leader_answers_200_at_leader(scene):
    assert statuses(scene) == (200, 200, 503)
    scene.lead(epoch=9)
    assert statuses(scene) == (200, 200, 200)
    assert json.loads(body(scene, "/leader"))["epoch"] == 9


def test_without_redis_a_standby_is_live_and_not_ready(scene):
    """A restart would not help, so only readiness fails. A trusted leader stays ready."""
    scene.status.memory(events.LeaseUnreachable("refused", leading=False))
    assert statuses(scene) == (200, 503, 503)
    assert b"refused" in body(scene, "/readyz")
    scene.lead()
    assert statuses(scene) == (200, 200, 200)
    scene.election.term = None
    scene.status.memory(events.LeaseReachable(3.0))
    assert statuses(scene) == (200, 200, 503)


def test_hung_main_loop_or_dead_election_thread_is_not_live(scene):
    scene.election.idle = 15.1
    assert statuses(scene) == (503, 503, 503)
    assert b"not live: stalled: " in body(scene, "/livez")
    scene.election.idle, scene.election.running = 0.1, False
    assert statuses(scene) == (503, 503, 503)


def test_failing_scheduler_is_not_ready(scene):
    """Such a replica would win an election and enqueue nothing."""
    scene.status.last_error = "OperationalError: connection to postgres://u:pw@db failed"
    assert statuses(scene) == (200, 503, 503)
    assert b"postgres://***@db" in body(scene, "/readyz")


def test_standby_is_not_ready_before_the_first_poll():
    scene = Scene(polled=False)
    assert statuses(scene) == (200, 503, 503)
    assert scene.status.snapshot == Snapshot()
    assert scene.document()["members"][0]["id"] == scene.status.replica.id


def test_replica_of_another_app_is_not_ready(scene):
    scene.status.snapshot = replace(scene.status.snapshot, view=view(fingerprint="another app"))
    assert statuses(scene) == (200, 503, 503)
    scene.status.snapshot = replace(scene.status.snapshot, view=view("another app", "released"))
    assert statuses(scene) == (200, 200, 503)
    scene.status.snapshot = replace(scene.status.snapshot, view=view())
    scene.status.memory(ANOTHER_APP)
    assert b"belongs to another app" in body(scene, "/readyz")
    scene.status.memory(events.TermStarted(1, "", TermStart.NO_LEASE))
    assert statuses(scene) == (200, 200, 503)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_only_get_and_head_are_allowed(scene, method):
    for answer in (scene.site().answer(method, path) for path in ("/", "/livez", "/status", "/events")):
        assert (answer.status, ("Allow", "GET, HEAD") in answer.headers) == (405, True)


def test_no_answer_contains_credentials(scene):
    """Exceptions of clients contain URLs."""
    secret = "Error 111 connecting to rediss://admin:hunter2@redis:6379/0"
    scene.status.memory(events.LeaseUnreachable(secret, leading=False))
    scene.status.memory(events.LeadingForbidden(ForbiddenReason.OTHER_STORE, secret))
    scene.status.memory(events.InvariantBroken("rule", "subject", secret))
    scene.lead()
    scene.status.memory(events.EntryFailed("nightly", EntryFault.REFUSED, secret))
    for term in (scene.election.term, None):
        scene.election.term, site = term, scene.site()
        for path in PATHS:
            assert b"hunter2" not in (site.answer("GET", path).body + site.update()), path
    assert b"rediss://***@redis" in body(scene, "/status")


def test_every_answer_has_security_headers(scene):
    site = scene.site()
    for path in (*PATHS, "/nowhere"):
        headers = dict(site.answer("GET", path).all_headers())
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        policy = headers["Content-Security-Policy"]
        assert ("default-src 'none'" in policy, "unsafe" in policy) == (True, False)


def test_unknown_path_answers_404_with_the_paths(scene):
    answer = scene.site().answer("GET", "/../etc/passwd")
    assert (answer.status, b"/livez" in answer.body) == (404, True)


def test_page_loads_no_external_resource(scene):
    parts = body(scene, "/").decode().split('"')
    assert [part for part in parts if part.startswith(("http:", "https:", "//")) and "w3.org" not in part] == []


def test_expensive_answer_is_reused(scene):
    """Thousands of requests for the metrics cost as much as a few."""
    made = []
    site = Site(scene.status, lambda: made.append(1) or b"metrics", scene.clock)  # type: ignore[func-returns-value]
    assert {site.answer("GET", "/metrics").body for _ in range(50)} == {b"metrics"}
    assert len(made) == 1
    scene.clock.advance(1)
    site.answer("GET", "/metrics")
    assert len(made) == 2


def test_failing_page_answers_503(scene):
    def fail():
        raise RuntimeError("redis://u:hunter2@h")

    answer = Site(scene.status, fail, scene.clock).answer("GET", "/metrics")
    assert (answer.status, b"hunter2" in answer.body) == (503, False)
