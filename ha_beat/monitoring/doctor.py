"""Examines a cluster from outside: what is set up in a way that will hurt, and what hurts already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from celery import Celery
from celery.beat import ScheduleEntry

from ha_beat.clock import Clock, from_micros
from ha_beat.dispatch.lease_marker import place_of, read_mark, two_stores
from ha_beat.errors import HaBeatError, StoreError
from ha_beat.monitoring.invariants import MEMORY, ClusterState, Invariants
from ha_beat.monitoring.request_wording import pause_text
from ha_beat.monitoring.wording import health, phrase, phrase_of
from ha_beat.reasons import PathReason, RequestKind
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.recurrence import recurrence_of, starting_deadline
from ha_beat.settings import Settings, redact_url
from ha_beat.store.journal import Journal, VerdictRecord
from ha_beat.store.keys import Keys
from ha_beat.store.membership import ClusterView, Members
from ha_beat.store.request_queue import NoAnswer, Pause, Request, Requests
from ha_beat.store.scripts import text

Level = Literal["ok", "note", "warn", "fail"]

#: Seconds that two clocks may be apart.
_CLOCK_TOLERANCE = 2.0

#: Seconds that an entry may be overdue.
_OVERDUE = 60.0

#: Of many findings of one sort, so many are listed.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: ``ok``, ``note`` (to know), ``warn`` (will hurt one day) or ``fail`` (hurts)."""

    level: Level
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What is needed to examine a cluster. ``timeout``, in seconds, is for the leader's answer."""

    app: Celery
    settings: Settings
    client: Callable[[], Any]
    keys: Keys
    members: Members
    journal: Journal
    requests: Requests
    clock: Clock
    fingerprint: str
    timeout: float = 5.0
    #: A client of the broker's Redis; ``None`` where it is none. The lease's store is named as replicas name it.
    broker: Callable[[], Any] | None = None
    store_name: str = ""

    def findings(self) -> list[Finding]:
        """Everything that was found, the parts one after the other.

        Raises:
            StoreError: Redis can't be asked at all.
        """
        view = self.members.view()
        found = [*self._settings()]
        for part in (
            self._redis,
            self._store,
            self._sentinel,
            self._clocks,
            self._cluster,
            self._leader,
            self._entries,
            self._records,
        ):
            try:
                found += part(view)
            except StoreError:
                raise
            except Exception as exc:
                # A part that can't be examined (rights withheld, say) says so, and the others go on.
                found.append(Finding("note", part.__name__.strip("_"), f"not examined: {type(exc).__name__}: {exc}"))
        return found

    # --- Settings

    def _settings(self) -> Iterator[Finding]:
        settings = self.settings
        changed = [f"{each.name}={each.value}" for each in settings.describe() if not each.is_default]
        yield Finding("ok", "settings", ", ".join(changed) or "all have their defaults")
        scheduler = str(self.app.conf.beat_scheduler or "")
        if "ha_beat" not in scheduler:
            detail = f"beat_scheduler is {scheduler!r}" if scheduler else "beat_scheduler is not set"
            yield Finding(
                "note", "scheduler", f"{detail}: a beat started without -S ha_beat would not belong to the cluster"
            )
        if settings.misfire == "skip":
            yield Finding("note", "misfire", "skip: what falls due while nobody leads is not caught up")

    # --- Redis

    def _redis(self, _: ClusterView) -> Iterator[Finding]:
        began = self.clock.elapsed()
        client = self.client()
        client.ping()
        took = (self.clock.elapsed() - began) * 1000
        info = _info(client, "server")
        mode = info.get("redis_mode") or info.get("server_mode", "?")  # Valkey's word is the second
        yield Finding(
            "ok",
            "redis",
            f"{redact_url(self.settings.redis_url or str(self.app.conf.broker_url))}, version "
            f"{info.get('redis_version', '?')}, {mode}, answered in {took:.1f} ms",
        )
        memory = _info(client, "memory")
        policy = str(memory.get("maxmemory_policy", "?"))
        if policy.startswith("allkeys"):
            text_ = f"{policy}: when memory runs out Redis may evict the lease, the ledger and queues; set noeviction"
            yield Finding("fail" if int(memory.get("maxmemory") or 0) else "warn", "eviction policy", text_)
        elif policy != "noeviction":
            yield Finding("warn", "eviction policy", f"{policy}: noeviction is safer; the cluster's keys have no TTL")
        else:
            yield Finding("ok", "eviction policy", policy)
        limit, used = int(memory.get("maxmemory") or 0), int(memory.get("used_memory") or 0)
        if limit and used > 0.9 * limit:
            yield Finding("warn", "memory", f"{used / limit:.0%} of maxmemory is used: a full Redis refuses to enqueue")
        persistence = _info(client, "persistence")
        if str(persistence.get("aof_enabled", "0")) != "1":
            yield Finding(
                "warn",
                "persistence",
                f"no append-only file: a Redis that restarts has lost state, and {self.settings.on_state_loss!r} "
                f"(on_state_loss) decides on what fell due around then; set appendonly yes",
            )
        else:
            yield Finding("ok", "persistence", "append-only file is on")
        for name in ("aof_last_write_status", "rdb_last_bgsave_status"):
            if str(persistence.get(name, "ok")) != "ok":
                yield Finding("fail", "persistence", f"{name} is {persistence[name]}: Redis can't write to its disk")

    def _store(self, _: ClusterView) -> Iterator[Finding]:
        """Whether the broker's Redis names this store as the lease's."""
        if self.broker is None:
            return
        mark = read_mark(self.broker(), self.keys)
        if mark is None:
            return
        client = self.client()
        gen = client.hget(self.keys.ledger, "m:gen")
        if mark.gen == (text(gen) if gen is not None else "") or (mark.place and mark.place == place_of(client)):
            yield Finding("ok", "lease's store", mark.name)
        else:
            yield Finding("fail", "lease's store", two_stores(mark, self.keys, self.store_name))

    def _sentinel(self, _: ClusterView) -> Iterator[Finding]:
        client = self.client()
        replication = _info(client, "replication")
        sentinels = _sentinel_addresses(self.settings.redis_url or str(self.app.conf.broker_url or ""))
        replicas = int(replication.get("connected_slaves") or 0)
        if not sentinels and not replicas:
            return
        wanted = int(_config(client, "min-replicas-to-write", "0"))
        max_lag = int(_config(client, "min-replicas-max-lag", "10"))
        if not wanted:
            yield Finding(
                "warn",
                "min-replicas-to-write",
                "0: at a failover an old master that is cut off goes on accepting, and an occurrence can be enqueued "
                "on both; set it to 1 or more",
            )
        else:
            yield Finding("ok", "min-replicas-to-write", f"{wanted}, with a max-lag of {max_lag} s")
        for host, port in sentinels:
            down_after = self._down_after(host, port)
            if down_after is None:
                continue
            enough = max_lag + 1 < down_after
            yield Finding(
                "ok" if enough else "warn",
                "down-after",
                f"{down_after:g} s"
                + (
                    ""
                    if enough
                    else f": must be more than min-replicas-max-lag + 1 s ({max_lag + 1} s), or a failover "
                    "can be over before the old master stops"
                ),
            )
            return
        if sentinels:
            yield Finding("note", "down-after", "no Sentinel answered; it must be more than min-replicas-max-lag + 1 s")

    def _down_after(self, host: str, port: int) -> float | None:
        try:
            return _ask_sentinel(self.client(), host, port)
        except Exception:
            return None

    # --- Clocks and cluster

    def _clocks(self, view: ClusterView) -> Iterator[Finding]:
        offset = self.clock.wall() - view.server_ms / 1000
        level: Level = "ok" if abs(offset) <= _CLOCK_TOLERANCE else "warn"
        yield Finding(level, "clock", f"this machine's is {offset:+.2f} s from Redis'")
        for member in view.members:
            away = member.clock_offset_ms / 1000
            if abs(away) > _CLOCK_TOLERANCE:
                yield Finding("warn", "clock", f"{member.id}: {away:+.1f} s from Redis'")

    def _cluster(self, view: ClusterView) -> Iterator[Finding]:
        lease = view.lease
        if lease is None:
            yield Finding("fail", "leader", f"nobody has ever led the cluster {self.settings.cluster!r} on this Redis")
        elif not lease.held:
            words = phrase(lease.reason, lease.detail)
            yield Finding("fail", "leader", f"nobody leads: {lease.holder} released the lease ({words})")
        elif view.leader is None:
            yield Finding("fail", "leader", f"{lease.holder} holds the lease, and does not renew it")
        else:
            yield Finding("ok", "leader", f"{lease.holder} in epoch {lease.epoch}")
        if lease is not None and lease.held and not lease.presence:
            yield Finding(
                "note", "presence", "the leader has none registered: a takeover from a dead process waits for lease_ttl"
            )
        known = self.client().hget(self.keys.ledger, "m:fingerprint")
        if known is not None and text(known) != self.fingerprint:
            yield Finding(
                "fail",
                "app",
                f"the ledger belongs to the app {text(known)!r}, this one is {self.fingerprint!r}: it could not lead",
            )
        else:
            yield Finding("ok", "app", self.fingerprint)
        standbys = [member for member in view.members if member.role != "leader"]
        level: Level = "ok" if standbys else "warn"
        alone = "" if standbys else ": nobody would take over"
        yield Finding(level, "replicas", f"{len(view.members)} alive, {len(standbys)} standing by{alone}")
        for member in view.members:
            for why in health(member.not_ready):
                yield Finding("warn", "replica", f"{member.id} could not lead: {why}")
        yield from _differences(view)
        if view.paused:
            yield Finding("warn", "paused", pause_text(Pause.parse(view.paused)))

    def _leader(self, view: ClusterView) -> Iterator[Finding]:
        if view.lease is None or not view.lease.held:
            return
        try:
            reply = self.requests.ask(Request(RequestKind.REPORT, by="doctor"), self.clock, self.timeout)
        except (NoAnswer, HaBeatError) as exc:
            if isinstance(exc, StoreError):
                raise
            yield Finding("fail", "main loop", f"the leader did not answer: {exc}")
            return
        report = reply.data
        dispatch: Mapping[str, str] = report.get("dispatch") or {}
        why = phrase_of(PathReason, dispatch.get("why", ""))
        yield Finding("ok", "dispatch", f"{dispatch['path']}: {why}" if dispatch.get("path") else "not chosen yet")
        if dispatch.get("path") == "claim":
            yield Finding(
                "note", "dispatch", f"what becomes of a message of unknown fate: {self.settings.uncertain} (uncertain)"
            )
        yield Finding("ok", "schedule", f"the leader has {report.get('entries')} entries, {report.get('backlog')} due")
        longest = float(report.get("longest_overdue") or 0.0)
        if longest > _OVERDUE and not report.get("paused"):
            yield Finding("fail", "invariant", f"overdue: an entry has been due for {longest:.0f} s")
        for entry, why in list((report.get("failing") or {}).items())[:_LISTED]:
            yield Finding("fail", "entry", f"{entry}: {why}")

    # --- The schedule of the app

    def _entries(self, view: ClusterView) -> Iterator[Finding]:
        """Entries of ``beat_schedule`` that can't be scheduled. Those of a database are the leader's to report."""
        now, faults, count = from_micros(view.server_ms * 1000), 0, 0
        configured: Mapping[str, Any] = self.app.conf.beat_schedule or {}
        for name, fields in configured.items():
            count += 1
            try:
                entry = (
                    fields
                    if isinstance(fields, ScheduleEntry)
                    else ScheduleEntry(**{"name": name, **dict(fields), "app": self.app})
                )
                EntryOptions.of(
                    name, entry.options or {}, MisfireRules(), starting_deadline(entry), self.settings.uncertain
                )
                instants = recurrence_of(entry)
                if instants is not None:
                    instants.next_after(now)
            except Exception as exc:
                faults += 1
                if faults <= _LISTED:
                    yield Finding("fail", "entry", f"{name} can't be scheduled: {type(exc).__name__}: {exc}")
        if faults > _LISTED:
            yield Finding("fail", "entry", f"and {faults - _LISTED} more can't be scheduled")
        if count and not faults:
            yield Finding("ok", "entries", f"all {count} of beat_schedule can be scheduled")

    # --- What is recorded

    def _records(self, view: ClusterView) -> Iterator[Finding]:
        records = self.journal.newest(MEMORY)
        # Read after the journal, the counter can't be behind it.
        view = self.members.view()
        watch = Invariants(emit=lambda _: None)
        standing = ClusterState(
            lease_epoch=view.lease.epoch if view.lease else 0,
            ledger_epoch=view.highest_epoch,
            journal_counter=view.journal_counter,
            gen=view.gen,
        )
        breaches = watch.check(standing, reversed(records))
        for violation in breaches[:_LISTED]:
            yield Finding("fail", "invariant", f"{phrase(violation.rule)} ({violation.subject}): {violation.detail}")
        if not breaches:
            yield Finding("ok", "invariants", f"hold in the newest {len(records)} records of the journal")
        uncertain = [r for r in records if isinstance(r, VerdictRecord) and r.verdict == "uncertain"]
        if uncertain:
            newest = uncertain[0]
            what = f"{len(uncertain)}, the newest of {newest.entry} at {newest.first.isoformat()}"
            yield Finding("warn", "uncertain occurrences", what)
        lost = sum(r.count for r in records if isinstance(r, VerdictRecord) and r.reason == "state_loss")
        if lost:
            yield Finding(
                "warn", "state loss", f"{lost} skipped after Redis lost state: ha-beat history --verdict skipped"
            )


def _differences(view: ClusterView) -> Iterator[Finding]:
    """In what the replicas should have in common. Of a schedule they tell a digest."""
    for what in ("version", "schedule", "fingerprint"):
        having: dict[str, list[str]] = {}
        for member in view.members:
            if getattr(member, what):
                having.setdefault(getattr(member, what), []).append(member.id)
        if len(having) > 1:
            normal = "" if what == "fingerprint" else ", which is normal only during a deploy"
            parted = "; ".join(f"{value} on {', '.join(ids)}" for value, ids in sorted(having.items()))
            called = "app" if what == "fingerprint" else what
            yield Finding("warn", "replicas", f"they differ in their {called}{normal}: {parted}")


def _info(client: Any, section: str) -> dict[str, Any]:
    found: Any = client.info(section)
    return {text(name): value for name, value in found.items()}


def _config(client: Any, name: str, default: str) -> str:
    found = {text(key): text(value) for key, value in client.config_get(name).items()}
    return found.get(name, default)


def _sentinel_addresses(url: str) -> list[tuple[str, int]]:
    """Host and port of each Sentinel that a URL names."""
    found = []
    for part in url.replace(",", ";").split(";"):
        if part.strip().startswith("sentinel://"):
            place = urlsplit(part.strip())
            if place.hostname:
                found.append((place.hostname, place.port or 26379))
    return found


def _ask_sentinel(client: Any, host: str, port: int) -> float | None:
    """Seconds after which Sentinel holds a silent master for down; the longest, if it watches several."""
    probe = type(client)(host=host, port=port, socket_timeout=2.0, socket_connect_timeout=2.0, decode_responses=True)
    try:
        masters: Any = probe.sentinel_masters()
    finally:
        probe.close()
    waits = [float(each["down-after-milliseconds"]) / 1000 for each in masters.values()]
    return max(waits) if waits else None
