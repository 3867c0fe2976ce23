"""Helpers for tests of the endpoint: a settable status, a server and a client."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ha_beat.duties import Duties
from ha_beat.leader.due_queue import DueQueue
from ha_beat.monitoring.http.address import Endpoint
from ha_beat.monitoring.http.connection import Limits
from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.http.server import HttpServer
from ha_beat.monitoring.metrics import Metrics
from ha_beat.monitoring.status import ReplicaStatus, current_warnings, member_record
from ha_beat.reasons import Duty
from ha_beat.store.lease import Replica, Term
from ha_beat.store.membership import Member
from ha_beat.testing import SettableClock
from tests.support.events import EventLog

LOCALHOST = "127.0.0.1"


@dataclass
class FakeElection:
    term: Term | None = None
    idle: float = 0.1
    running: bool = True


@dataclass
class FakeEnqueuer:
    scene: Any

    @property
    def due_queue(self) -> DueQueue:
        return self.scene.due_queue

    def now(self) -> datetime:
        return self.scene.clock.now()

    def taken_up(self, _: Term) -> bool:
        return self.scene.taken_up

    serves = taken_up


@dataclass
class Scene:
    """Status of a replica and its parts."""

    clock: SettableClock = field(default_factory=SettableClock)
    election: FakeElection = field(default_factory=FakeElection)
    due_queue: DueQueue = field(default_factory=DueQueue)
    taken_up: bool = True
    schedule_read: bool = True
    replica: Replica = field(
        default_factory=lambda: Replica("beat-0:abc123", "host-0", 42, "1.2.3", "shop", "http://127.0.0.1:8080")
    )

    def __post_init__(self) -> None:
        self.events = EventLog()
        self.duties = Duties(self.clock, self.events.append)
        self.duties.done(Duty.REACH_BROKER)
        options = {"schedule_read": lambda: self.schedule_read, "stall_timeout": 15.0}
        self.status = ReplicaStatus(
            self.replica, "shop", self.clock, self.election, FakeEnqueuer(self), self.duties, **options
        )

    def lead(self, epoch: int = 7, seconds: float = 9.0) -> Term:
        self.election.term = Term(self.replica.id, epoch, "nonce", "gen", "run", self.clock.elapsed() + seconds)
        return self.election.term

    def warned(self, *others: Member) -> set[str]:
        """Return the codes of the warnings, with these replicas beside this one."""
        return {each.code for each in current_warnings(self.status, [member_record(self.status), *others])}

    def metrics(self, *, per_entry: bool = False) -> Metrics:
        return Metrics(self.status, {"version": "1.2.3", "celery": "5.7"}, per_entry=per_entry)

    def site(self) -> Site:
        return Site(self.status, self.metrics().text, self.clock)


@contextlib.contextmanager
def serving(site: Site, limits: Limits | None = None, endpoint: Endpoint | None = None) -> Iterator[HttpServer]:
    """Serve the site, by default on a free port."""
    server = HttpServer(site, endpoint or Endpoint(LOCALHOST, 0), limits)
    server.thread.keep_running()
    try:
        assert server.serving.wait(10)
        yield server
    finally:
        server.stop()


@dataclass
class Reply:
    status: int
    text: str
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.text)


def ask(port: int, path: str, method: str = "GET", timeout: float = 5.0) -> Reply:
    """Send one request on a new connection. Raises OSError without an answer."""
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        return Reply(answer.status, text, {name.lower(): value for name, value in answer.getheaders()})
    except http.client.HTTPException as exc:
        raise ConnectionError(repr(exc)) from exc
    finally:
        connection.close()


def send_raw(port: int, data: bytes, first_byte: float = 0.5) -> bytes:
    """Send bytes, and return the answer up to its end or half a second of silence. It begins within `first_byte`."""
    with socket.create_connection((LOCALHOST, port), timeout=30.0) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
        client.settimeout(first_byte)
        found = b""
        with contextlib.suppress(OSError):
            while chunk := client.recv(65536):
                found += chunk
                client.settimeout(0.5)
        return found
