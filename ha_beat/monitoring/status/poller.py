"""A slow thread with a connection of its own, that registers the replica as a member and looks at the cluster."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.errors import StoreError
from ha_beat.monitoring.invariants import PATROL_INTERVAL, Patrol
from ha_beat.monitoring.status.replica import Board
from ha_beat.monitoring.status.snapshot import Look, spans
from ha_beat.reasons import RedisRisk
from ha_beat.store.journal import Journal, Record, TermRecord, VerdictRecord
from ha_beat.store.membership import MEMBER_INTERVAL, ClusterView, Members, ServerSettings

logger = logging.getLogger("ha_beat")

#: Seconds between two looks at the cluster, where somebody may want to see it.
_LOOK_INTERVAL = 1.0

#: Seconds between two looks at how the Redis server is set up.
_FACTS_INTERVAL = 30.0

#: Seconds; longest time until the thread notices that it shall look at once, or stop.
_SLICE = 0.1

_RECENT = 300
_TERMS = 100

#: Most pages of the journal that one look follows; beyond, it jumps to the end.
_PAGES = 4


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
        emit: Callable[[events.Event], None] = lambda _: None,
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
        self._facts: ServerSettings | None = None
        self._emit = emit
        self._risks_told: set[RedisRisk] = set()
        self._last_id = ""
        self._gen = ""
        self._recent: deque[VerdictRecord] = deque(maxlen=_RECENT)
        self._terms: deque[TermRecord] = deque(maxlen=_TERMS)
        #: By epoch: when the last verdict under it was written, by the Redis server's clock.
        self._last_verdicts: dict[int, int] = {}

    def start(self) -> None:
        """To be called after any fork."""
        threading.Thread(target=self._run, name="ha_beat-watcher", daemon=True).start()

    def stop(self) -> None:
        """Say no more that this replica is here. May run inside a signal handler; waits for nothing."""
        self._closing = True

    def _run(self) -> None:
        interval = _LOOK_INTERVAL if self._looking else MEMBER_INTERVAL
        while not self._closing:
            self._board.hurry = False
            try:
                self.turn()
            except Exception:
                logger.exception("Reading the cluster's state failed", extra={"action": "poll_failed"})
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
            if self._looking or self._facts is None:
                self._look_at_the_server()
            if view is not None:
                self._follow(view)
            self._go_round(leading=member.role == "leader")
        except StoreError as exc:
            board.look = replace(before, unreachable=str(exc))
            return
        board.look = Look(
            view=view,
            looked_at=received,
            round_trip=received - sent,
            clock_offset=offset,
            unreachable="",
            facts=self._facts,
            recent=tuple(self._recent),
            terms=spans(self._terms, view.lease if view else None, self._last_verdicts),
        )

    def _go_round(self, *, leading: bool) -> None:
        now = self._clock.elapsed()
        if self._patrol is not None and (leading or self._looking) and now - self._patrol_at >= PATROL_INTERVAL:
            self._patrol_at = now
            self._patrol.turn()

    def _look_at_the_server(self) -> None:
        now = self._clock.elapsed()
        if now - self._facts_at <= _FACTS_INTERVAL:
            return
        self._facts, self._facts_at = self._members.server_settings(), now
        for risk in self._facts.risks() if self._facts else ():
            if risk not in self._risks_told:
                self._risks_told.add(risk)
                policy = self._facts.eviction_policy if self._facts and risk is RedisRisk.EVICTION else ""
                self._emit(events.ServerMayForget(risk, policy))

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
        self._last_verdicts[record.epoch] = max(self._last_verdicts.get(record.epoch, 0), _order(record.id)[0])
        if len(self._last_verdicts) > 2 * _TERMS:
            del self._last_verdicts[min(self._last_verdicts)]


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds or 0), int(number or 0)
