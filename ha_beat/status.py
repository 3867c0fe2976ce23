"""What a replica knows of itself and of the cluster, kept in memory for whoever asks.

The :class:`Board` listens to events; the :class:`Watcher`, a slow thread with a connection of its own, registers the
replica as a member and looks at the cluster. Health, status and metrics are read off the board, and never ask Redis.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from ha_beat import events
from ha_beat.agenda import Agenda
from ha_beat.clock import Clock
from ha_beat.errors import StoreError
from ha_beat.invariants import PATROL_INTERVAL, Patrol
from ha_beat.journal import Journal, Record, TermRecord, VerdictRecord
from ha_beat.lease import LeaseRecord, Replica, Term
from ha_beat.ledger import to_micros
from ha_beat.members import MEMBER_INTERVAL, ClusterView, Member, Members, ServerFacts, Upcoming
from ha_beat.requests import Pause

logger = logging.getLogger("ha_beat")

#: Of the JSON that :meth:`Board.status` makes. It grows when a field changes its meaning or goes; new ones may come.
STATUS_SCHEMA = 1

#: Seconds between two looks at the cluster, where somebody may want to see it.
LOOK_INTERVAL = 1.0

#: Seconds between two looks at how the Redis server is set up.
_FACTS_INTERVAL = 30.0

#: Seconds; longest time until the thread notices that it shall look at once, or stop.
_SLICE = 0.1

#: Seconds that a clock may be away from the Redis server's before it is said.
CLOCK_TOLERANCE = 2.0

#: Seconds for which a due occurrence may wait for its verdict before it is said.
OVERDUE_TOLERANCE = 30.0

#: Seconds for which something that happened once is shown as a warning.
_REMEMBERED = 3600.0

_RECENT = 300
_TERMS = 100
_UPCOMING = 20
_FAILING = 20

#: Most pages of the journal that one look follows; beyond, it jumps to the end.
_PAGES = 4


class Vitals(Protocol):
    """What the board asks of the elector."""

    @property
    def term(self) -> Term | None: ...

    @property
    def idle(self) -> float: ...

    @property
    def running(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Health:
    """An answer to a probe: ``reasons`` say why not."""

    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that a person should look at. ``level`` is ``warning`` or ``notice``."""

    code: str
    message: str
    level: str = "warning"


@dataclass(frozen=True, slots=True)
class TermSpan:
    """One stretch of leadership, in ms since the Unix epoch by the Redis server's clock.

    ``ended_ms`` is ``None`` while it lasts, and where ``released`` is False the leader's last sign (a renewal or a
    verdict): the true end lies between it and the next term. ``gap_ms`` is the time for which nobody led before it, at
    most.
    """

    epoch: int
    by: str
    began_ms: int
    why: str
    ended_ms: int | None = None
    released: bool = False
    end_why: str = ""
    gap_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What the watcher's last look brought. ``looked_at`` is on ``Clock.elapsed``; offsets and times are in seconds."""

    view: ClusterView | None = None
    looked_at: float = 0.0
    round_trip: float = 0.0
    clock_offset: float = 0.0
    why_not: str = "Redis has not been asked yet"
    facts: ServerFacts | None = None
    recent: tuple[VerdictRecord, ...] = ()
    terms: tuple[TermSpan, ...] = ()


class Board:
    """The one place where a replica's state can be read. Subscribes to events; every method is quick."""

    def __init__(
        self,
        replica: Replica,
        cluster: str,
        clock: Clock,
        vitals: Vitals,
        agenda: Callable[[], Agenda],
        now: Callable[[], datetime],
        *,
        stall_timeout: float,
    ) -> None:
        """``now`` is the scheduling time; ``stall_timeout`` is in seconds."""
        self.replica = replica
        self.cluster = cluster
        self.look = Look()
        self.hurry = False
        self._clock = clock
        self._vitals = vitals
        self._agenda = agenda
        self._stall_timeout = stall_timeout
        self._now = now
        #: A digest of the schedule, empty where it is not known.
        self.schedule = ""
        #: Why the main loop's last turn failed (the schedule's store is away, say); empty where it didn't.
        self.trouble = ""
        self._since_ms = round(clock.wall() * 1000)
        self._unreachable = ""
        self._forbidden = ""
        self._failing: dict[str, str] = {}
        self._broken: deque[tuple[float, Warn]] = deque(maxlen=20)

    # --- Events

    def __call__(self, event: events.Event) -> None:  # noqa: PLR0912 -- one case for each event
        match event:
            case events.TermStarted():
                self._forbidden, self.hurry = "", True
            case events.TermEnded():
                self._failing, self.hurry = {}, True
            case events.LeaderSeen():
                self.hurry = True
            case events.LeaseUnreachable(why=why):
                self._unreachable, self.hurry = why, True
            case events.LeaseReachable():
                self._unreachable, self.hurry = "", True
            case events.LeadingForbidden(why=why):
                self._forbidden = why
            case events.EntryFailed(entry=entry, why=why):
                if entry in self._failing or len(self._failing) < _FAILING:
                    self._failing[entry] = why[:200]
            case events.Enqueued(entry=entry):
                self._failing.pop(entry, None)
            case events.InvariantBroken(kind=kind, subject=subject, detail=detail):
                self._broken.append((self._clock.elapsed(), Warn(f"invariant-{kind}", f"{subject}: {detail}")))
            case events.StateLost(why=why):
                self._broken.append((self._clock.elapsed(), Warn("state-lost", f"Redis lost state: {why}")))
            case events.ClockOffset():
                self.hurry = True
            case _:
                pass

    # --- Probes

    @property
    def term(self) -> Term | None:
        return self._vitals.term

    @property
    def role(self) -> str:
        return "leader" if self._vitals.term is not None else "standby"

    @property
    def idle(self) -> float:
        """Seconds since the main loop last moved."""
        return self._vitals.idle

    @property
    def trust_left(self) -> float:
        """Seconds for which this replica may go on without hearing from Redis; 0 where it does not lead."""
        term = self._vitals.term
        return 0.0 if term is None else max(0.0, term.trusted_until - self._clock.elapsed())

    @property
    def reachable(self) -> bool:
        """Whether Redis answered last time."""
        return not self._unreachable and not self.look.why_not

    def live(self) -> Health:
        """Whether the process works, whatever its role and whether or not there is a Redis."""
        reasons = []
        idle = self.idle
        if idle > self._stall_timeout:
            reasons.append(f"the main loop has not moved for {idle:.1f} s")
        if not self._vitals.running:
            reasons.append("the election thread does not run")
        return Health(tuple(reasons))

    def ready(self) -> Health:
        """Whether this replica leads, or could."""
        return self._ready(asks_redis=True)

    def _ready(self, *, asks_redis: bool) -> Health:
        reasons = list(self.live().reasons)
        if self.trouble:
            reasons.append(redacted(f"the scheduler's last turn failed: {self.trouble}"))
        if self._vitals.term is None:
            if asks_redis and (self._unreachable or self.look.why_not):
                reasons.append(redacted(f"Redis can't be reached: {self._unreachable or self.look.why_not}"))
            if self._forbidden:
                reasons.append(redacted(self._forbidden))
            lease = self.look.view.lease if self.look.view else None
            if lease is not None and lease.held and lease.fingerprint != self.replica.fingerprint:
                reasons.append(f"the lease is held for another app, {lease.fingerprint!r}")
        return Health(tuple(reasons))

    # --- What it shows

    def member(self) -> Member:
        """What this replica says of itself to the others."""
        leading = self._vitals.term is not None
        replica = self.replica
        member = Member(
            id=replica.id,
            role="leader" if leading else "standby",
            host=replica.host,
            pid=replica.pid,
            version=replica.version,
            since_ms=self._since_ms,
            http=replica.http,
            fingerprint=replica.fingerprint,
            schedule=self.schedule,
            clock_offset_ms=round(self.look.clock_offset * 1000),
            # Whoever reads this in Redis knows that the replica can reach it.
            not_ready=self._ready(asks_redis=False).reasons,
        )
        term = self._vitals.term
        if term is None:
            return member
        agenda = self._agenda()
        upcoming = agenda.upcoming(_UPCOMING)
        overdue = 0.0
        if upcoming:
            overdue = max(0.0, (self._now() - upcoming[0][0]).total_seconds())
        return replace(
            member,
            epoch=term.epoch,
            entries=len(agenda),
            backlog=self.backlog(),
            overdue_ms=round(overdue * 1000),
            upcoming=tuple(
                Upcoming(slot.label, str(getattr(slot.entry, "task", "")), to_micros(at) // 1000)
                for at, slot in upcoming
            ),
            failing=dict(self._failing),
        )

    def backlog(self) -> int:
        """How many entries of the leader's agenda are due; 0 where this is a standby."""
        if self._vitals.term is None:
            return 0
        return self._agenda().backlog(self._now())

    def entries(self) -> int:
        return 0 if self._vitals.term is None else len(self._agenda())

    def now_ms(self) -> int:
        """The Redis server's time now, as far as it is known, else this machine's."""
        look = self.look
        if look.view is None:
            return round(self._clock.wall() * 1000)
        return look.view.server_ms + round((self._clock.elapsed() - look.looked_at) * 1000)

    def members(self) -> list[Member]:
        """Every replica alive at the last look, this one as it is now."""
        view = self.look.view
        others = [each for each in view.members if each.id != self.replica.id] if view else []
        this = replace(self.member(), seen_ms=self.now_ms())
        return sorted([*others, this], key=lambda each: each.id)

    def status(self) -> dict[str, Any]:
        """Everything, ready for JSON. Times `…_ms` are ms since the Unix epoch, `…_s` seconds."""
        look, now = self.look, self.now_ms()
        view, term = look.view, self._vitals.term
        members = self.members()
        leader = next((each for each in members if each.role == "leader"), None)
        live, ready = self.live(), self.ready()
        facts = look.facts
        return {
            "schema": STATUS_SCHEMA,
            "cluster": self.cluster,
            "now_ms": now,
            "replica": {
                "id": self.replica.id,
                "role": "leader" if term is not None else "standby",
                "host": self.replica.host,
                "pid": self.replica.pid,
                "version": self.replica.version,
                "since_ms": self._since_ms,
                "live": live.ok,
                "ready": ready.ok,
                "reasons": list(dict.fromkeys((*live.reasons, *ready.reasons))),
                "last_tick_s": round(self.idle, 3),
                "trust_s": round(self.trust_left, 3),
            },
            "redis": {
                "reachable": self.reachable,
                "why": self._unreachable or look.why_not,
                "age_s": round(self._clock.elapsed() - look.looked_at, 3) if view else None,
                "round_trip_s": round(look.round_trip, 6),
                "clock_offset_s": round(look.clock_offset, 3),
                "eviction_policy": facts.eviction_policy if facts else None,
                "append_only_file": facts.append_only_file if facts else None,
            },
            "lease": _lease(view.lease) if view and view.lease else None,
            "paused": _loads(view.paused) if view and view.paused else None,
            "members": [_member(each) for each in members],
            "entries": leader.entries if leader else None,
            "backlog": leader.backlog if leader else None,
            "overdue_s": leader.overdue_ms / 1000 if leader else None,
            "upcoming": [asdict(line) for line in leader.upcoming] if leader else [],
            "recent": [_verdict(record) for record in reversed(look.recent)],
            "terms": [asdict(span) for span in look.terms],
            "journal": {"length": view.journal_length, "counter": view.journal_counter} if view else None,
            "warnings": [asdict(warning) for warning in self.warnings(members)],
        }

    def warnings(self, members: Sequence[Member] | None = None) -> list[Warn]:
        """What a person should look at, the worst first."""
        members = self.members() if members is None else members
        found = [*self._of_redis(), *self._of_lease(), *self._of_late()]
        for each in members:
            offset = each.clock_offset_ms / 1000
            if abs(offset) > CLOCK_TOLERANCE:
                side = "ahead of" if offset > 0 else "behind"
                found.append(Warn("clock-offset", f"{each.id}: its clock is {abs(offset):.1f} s {side} Redis'"))
            found += [Warn("not-ready", f"{each.id}: {why}") for why in each.not_ready]
            found += [Warn("entry-failing", f"{entry}: {why}") for entry, why in each.failing.items()]
            if each.overdue_ms > OVERDUE_TOLERANCE * 1000:
                found.append(
                    Warn("overdue", f"the oldest due occurrence has waited for {each.overdue_ms / 1000:.0f} s")
                )
        enqueued = {(record.entry, record.first) for record in self.look.recent if record.verdict == "enqueued"}
        uncertain = [
            record
            for record in self.look.recent
            if record.verdict == "uncertain" and (record.entry, record.first) not in enqueued  # confirmed late
        ]
        if uncertain:
            latest = uncertain[-1]
            what = f"{len(uncertain)} occurrences, the latest of {latest.entry} at {latest.first.isoformat()}"
            found.append(Warn("uncertain", f"nobody knows whether they were enqueued: {what}"))
        if len({each.schedule for each in members if each.schedule}) > 1:
            found.append(Warn("schedule-drift", "the replicas have different schedules; normal only during a deploy"))
        if len({each.version for each in members}) > 1:
            found.append(Warn("version-mix", "the replicas run different versions of ha_beat", "notice"))
        if len(members) == 1 and self.reachable:
            found.append(Warn("no-standby", "there is one replica only: nobody could take over", "notice"))
        return sorted(found, key=lambda warning: warning.level != "warning")

    def _of_late(self) -> Iterable[Warn]:
        """What can't be asked again, but should not go by unseen."""
        since = self._clock.elapsed() - _REMEMBERED
        return [warning for at, warning in tuple(self._broken) if at >= since]

    def _of_redis(self) -> Iterable[Warn]:
        look = self.look
        if self._unreachable or look.why_not:
            yield Warn("redis-unreachable", f"Redis can't be reached: {self._unreachable or look.why_not}")
        if look.facts is not None and look.facts.eviction_policy.startswith("allkeys"):
            yield Warn(
                "eviction-policy",
                f"Redis may evict the lease and the ledger: its maxmemory-policy is {look.facts.eviction_policy}",
            )
        if look.view is not None and look.view.paused:
            words = Pause.parse(look.view.paused).in_words()
            yield Warn("paused", f"the cluster is paused, so that nothing is enqueued by schedule, {words}", "notice")

    def _of_lease(self) -> Iterable[Warn]:
        view = self.look.view
        if view is None or self._vitals.term is not None:
            return
        lease = view.lease
        if lease is None or not lease.held:
            yield Warn("no-leader", "nobody leads")
        elif lease.renewed_ms and self.now_ms() - lease.renewed_ms > lease.ttl_ms:
            age = (self.now_ms() - lease.renewed_ms) / 1000
            yield Warn("no-leader", f"{lease.holder} holds the lease, but has not renewed it for {age:.1f} s")


class Watcher:
    """Registers the replica and keeps the board up to date. Nothing waits for this thread."""

    def __init__(
        self,
        board: Board,
        members: Members,
        journal: Journal,
        clock: Clock,
        *,
        looking: bool,
        patrol: Patrol | None = None,
    ) -> None:
        """``looking``: whether somebody may want to see the cluster; else the replica only registers.

        ``patrol`` looks after the invariants, where this replica leads or looks.
        """
        self._board = board
        self._members = members
        self._journal = journal
        self._clock = clock
        self._looking = looking
        self._patrol = patrol
        self._patrol_at = float("-inf")
        self._closing = False
        #: Whether the replica has signed off.
        self.gone = False
        self._facts_at = float("-inf")
        self._facts: ServerFacts | None = None
        self._last_id = ""
        self._gen = ""
        self._recent: deque[VerdictRecord] = deque(maxlen=_RECENT)
        self._terms: deque[TermRecord] = deque(maxlen=_TERMS)
        #: By epoch: when the last verdict under it was written, by the Redis server's clock.
        self._heard: dict[int, int] = {}

    def start(self) -> None:
        """To be called after any fork."""
        threading.Thread(target=self._run, name="ha_beat-watcher", daemon=True).start()

    def stop(self) -> None:
        """Say no more that this replica is here. May run inside a signal handler; waits for nothing."""
        self._closing = True

    def _run(self) -> None:
        interval = LOOK_INTERVAL if self._looking else MEMBER_INTERVAL
        while not self._closing:
            self._board.hurry = False
            try:
                self.turn()
            except Exception:
                logger.exception("Looking at the cluster failed")
            self._wait(interval)
        self._members.remove(self._board.replica.id)
        self.gone = True

    def _wait(self, interval: float) -> None:
        until = self._clock.elapsed() + interval
        while not self._closing and not self._board.hurry and (left := until - self._clock.elapsed()) > 0:
            self._clock.sleep(min(left, _SLICE))
        if self._board.hurry:
            self._clock.sleep(_SLICE)  # a change of leader comes as several events

    def turn(self) -> None:
        """Register, and look."""
        board, before = self._board, self._board.look
        member = board.member()
        sent = self._clock.elapsed()
        try:
            if not self._looking:
                view, server_ms = None, self._members.announce(member)
            else:
                view = self._members.view(member, clean=member.role == "leader")
                server_ms = view.server_ms
            received = self._clock.elapsed()
            offset = self._clock.wall() - (received - sent) / 2 - server_ms / 1000
            if view is not None:
                self._look_closer(view)
            self._go_round(leading=member.role == "leader")
        except StoreError as exc:
            board.look = replace(before, why_not=str(exc))
            return
        board.look = Look(
            view=view,
            looked_at=received,
            round_trip=received - sent,
            clock_offset=offset,
            why_not="",
            facts=self._facts,
            recent=tuple(self._recent),
            terms=spans(self._terms, view.lease if view else None, self._heard),
        )

    def _go_round(self, *, leading: bool) -> None:
        now = self._clock.elapsed()
        if self._patrol is not None and (leading or self._looking) and now - self._patrol_at >= PATROL_INTERVAL:
            self._patrol_at = now
            self._patrol.turn()

    def _look_closer(self, view: ClusterView) -> None:
        now = self._clock.elapsed()
        if now - self._facts_at > _FACTS_INTERVAL:
            self._facts, self._facts_at = self._members.server_facts(), now
        self._follow(view)

    def _follow(self, view: ClusterView) -> None:
        """Read what the journal has got since the last look."""
        if not self._last_id:
            self._read_back()
        if view.gen != self._gen:
            # Another Redis, or an emptied one, perhaps with an earlier clock. What was seen before stays in memory.
            self._gen = view.gen
            newest = self._journal.newest(1)
            if newest and _order(newest[0].id) < _order(self._last_id):
                self._last_id = "0"
        for _ in range(_PAGES):
            records = self._journal.after(self._last_id or "0")
            self._take_in(records)
            if len(records) < 500:
                return
        self._take_in(reversed(self._journal.newest(_RECENT)))

    def _read_back(self) -> None:
        """At the start: what the journal has."""
        terms: list[TermRecord] = []
        verdicts: list[VerdictRecord] = []
        newest = ""
        for record in self._journal.between():
            newest = newest or record.id
            if isinstance(record, TermRecord):
                terms.append(record)
            elif isinstance(record, VerdictRecord):
                self._hear(record)
                if len(verdicts) < _RECENT:
                    verdicts.append(record)
            if len(terms) >= _TERMS or self._closing:
                break
        self._terms.extend(reversed(terms))
        self._recent.extend(reversed(verdicts))
        self._last_id = newest

    def _take_in(self, records: Iterable[Record]) -> None:
        for record in records:
            if self._last_id not in {"", "0"} and _order(record.id) <= _order(self._last_id):
                continue
            self._last_id = record.id
            if isinstance(record, TermRecord):
                self._terms.append(record)
            elif isinstance(record, VerdictRecord):
                self._recent.append(record)
                self._hear(record)

    def _hear(self, record: VerdictRecord) -> None:
        self._heard[record.epoch] = max(self._heard.get(record.epoch, 0), _order(record.id)[0])
        if len(self._heard) > 2 * _TERMS:
            del self._heard[min(self._heard)]


def spans(
    records: Iterable[TermRecord], lease: LeaseRecord | None, heard: Mapping[int, int] | None = None
) -> tuple[TermSpan, ...]:
    """The terms that the journal's changes of leader make up, oldest first.

    ``heard`` says by epoch when its leader last gave a verdict, in ms: often later than its last renewal.
    """
    heard = heard or {}
    found: list[TermSpan] = []
    for record in records:
        last = found[-1] if found else None
        if record.event == "acquired":
            gap = None
            if last is not None:
                if last.ended_ms is None:
                    left_ms = record.left_ms if record.previous_epoch == last.epoch else 0
                    left_ms = min(max(left_ms, heard.get(last.epoch, 0)), record.ms) or record.ms
                    last = found[-1] = replace(last, ended_ms=left_ms, end_why=record.why)
                gap = max(0, record.ms - (last.ended_ms or record.ms))
            found.append(TermSpan(record.epoch, record.by, record.ms, record.why, gap_ms=gap))
        elif last is not None and last.epoch == record.epoch and last.ended_ms is None:
            found[-1] = replace(last, ended_ms=record.ms, released=True, end_why=record.why)
    if lease is not None and lease.held and (not found or found[-1].epoch != lease.epoch):
        found.append(TermSpan(lease.epoch, lease.holder, lease.since_ms, "before the journal's oldest record"))
    return tuple(found)


_CREDENTIALS = re.compile(r"(://)[^/\s@\"']+@")


def redacted(text: str) -> str:
    """Without user and password in URLs, which the messages of some exceptions contain."""
    return _CREDENTIALS.sub(r"\1***@", text)


def encoded(status: dict[str, Any]) -> bytes:
    """The status as JSON, without credentials."""
    return redacted(json.dumps(status, separators=(",", ":"))).encode()


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds or 0), int(number or 0)


def _loads(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _lease(lease: LeaseRecord) -> dict[str, Any]:
    names = ("holder", "epoch", "state", "since_ms", "renewed_ms", "ttl_ms", "http", "host", "pid", "version", "reason")
    return {name: getattr(lease, name) for name in names}


def _member(member: Member) -> dict[str, Any]:
    record = asdict(member)
    del record["upcoming"]
    record["not_ready"] = list(member.not_ready)
    return record


def _verdict(record: VerdictRecord) -> dict[str, Any]:
    return {
        "n": record.n,
        "entry": record.entry,
        "verdict": record.verdict,
        "at_ms": to_micros(record.first) // 1000,
        "until_ms": to_micros(record.until) // 1000,
        "count": record.count,
        "ms": record.ms,
        "lateness_s": round(record.lateness, 4),
        "epoch": record.epoch,
        "by": record.by,
        "reason": record.reason,
        "task_id": record.task_id,
    }
