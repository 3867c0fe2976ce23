"""Settable status of a replica, without threads and servers."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ha_beat.duties import Duties
from ha_beat.leader.due_queue import DueQueue
from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.metrics import Metrics
from ha_beat.monitoring.status import ReplicaStatus, Snapshot, current_warnings, document, member_record
from ha_beat.reasons import Duty
from ha_beat.store.lease import Replica, Term
from ha_beat.store.membership import Member
from ha_beat.testing import SettableClock
from tests.support.events import EventLog

REPLICA = Replica("beat-0:abc123", "host-0", 42, "1.2.3", "shop", "http://127.0.0.1:8080")


@dataclass
class FakeElection:
    term: Term | None = None
    idle: float = 0.1
    running: bool = True


@dataclass
class FakeEnqueuer:
    clock: SettableClock
    due_queue: DueQueue = field(default_factory=DueQueue)
    loaded: bool = True

    def now(self) -> datetime:
        return self.clock.now()

    def taken_up(self, _: Term) -> bool:
        return self.loaded

    serves = taken_up


class Scene:
    """Status of a replica and its parts. The last poll found Redis reachable, unless ``polled`` is False."""

    def __init__(self, clock: SettableClock | None = None, *, polled: bool = True) -> None:
        self.clock = clock or SettableClock()
        self.election = FakeElection()
        self.enqueuer = FakeEnqueuer(self.clock)
        self.due_queue = self.enqueuer.due_queue
        self.schedule_read = True
        self.events = EventLog()
        self.duties = Duties(self.clock, self.events.append)
        self.duties.done(Duty.REACH_BROKER)
        options: Any = {"schedule_read": lambda: self.schedule_read, "stall_timeout": 15.0}
        enqueuer: Any = self.enqueuer
        self.status = ReplicaStatus(REPLICA, "shop", self.clock, self.election, enqueuer, self.duties, **options)
        if polled:
            self.status.snapshot = Snapshot(unreachable="")

    def lead(self, epoch: int = 7, seconds: float = 9.0) -> Term:
        self.election.term = Term(REPLICA.id, epoch, "nonce", "gen", "run", self.clock.elapsed() + seconds)
        return self.election.term

    def warned(self, *others: Member) -> set[str]:
        """Return the codes of the warnings, with these replicas beside this one."""
        return {each.code for each in current_warnings(self.status, [member_record(self.status), *others])}

    def document(self) -> dict[str, Any]:
        return document(self.status)

    def metrics(self, *, per_entry: bool = False) -> Metrics:
        return Metrics(self.status, {"version": "1.2.3", "celery": "5.7"}, per_entry=per_entry)

    def site(self) -> Site:
        return Site(self.status, self.metrics().text, self.clock)
