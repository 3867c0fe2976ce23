"""Checks of a cluster's configuration and state, from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery.beat import ScheduleEntry
from celery.utils.imports import load_extension_class_names, symbol_by_name

from ha_beat.celery_app import broker_client, fingerprint, ignored_brokers, lease_redis_name
from ha_beat.client import ClusterClient
from ha_beat.clock import from_micros
from ha_beat.dispatch.lease_marker import place_of, read_mark, two_stores
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.exception_text import exception_line
from ha_beat.monitoring.doctor.finding import Finding, fail, note, ok, warn
from ha_beat.monitoring.doctor.servers import check_broker, check_failover, check_redis
from ha_beat.monitoring.invariants import MEMORY, ClusterState, Invariants
from ha_beat.monitoring.request_wording import pause_text
from ha_beat.monitoring.status.poller import certain_offset
from ha_beat.monitoring.wording import entries_text, health, instant, phrase, phrase_of
from ha_beat.reasons import DispatchPath, EntryFault, PathReason, RequestKind, SkipReason, Verdict
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.recurrence import recurrence_of, starting_deadline
from ha_beat.settings import redact_url
from ha_beat.store.busy_entries import BusyEntries
from ha_beat.store.journal import VerdictRecord
from ha_beat.store.membership import ClusterView
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.request_queue import NoAnswer, Pause, TooManyRequests
from ha_beat.store.scripts import text

#: Seconds by which two clocks may differ.
_CLOCK_TOLERANCE = 2.0

#: Seconds for which an entry may be overdue.
_OVERDUE = 60.0

#: Seconds within which a worker that is not overloaded receives a message.
_RECEIVED_WITHIN = 60.0

#: Findings of one kind that are listed.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Examination:
    """Examination of a cluster. ``timeout`` is the time in seconds to wait for the leader's answer."""

    cluster: ClusterClient
    timeout: float = 5.0

    def findings(self) -> list[Finding]:
        """Run all checks, and return their results.

        Raises:
            StoreError: Redis does not answer.
        """
        view = self.cluster.members.view()
        found = [*self._settings()]
        for part in (
            self._scheduler,
            self._redis,
            self._broker,
            self._store,
            self._clocks,
            self._cluster,
            self._leader,
            self._entries,
            self._overlap,
            self._records,
        ):
            try:
                with mapped_redis_errors():
                    found += part(view)
            except StoreUnavailable:
                raise
            except StoreRefused as exc:
                # For example a missing right. The other checks still run.
                found.append(note(part.__name__.strip("_"), f"not checked: {exc}"))
            except Exception as exc:
                detail = f"this check failed with an internal error: {exception_line(exc)}"
                found.append(warn(part.__name__.strip("_"), detail))
        return found

    # --- Settings

    def _settings(self) -> Iterator[Finding]:
        settings = self.cluster.settings
        changed = [f"{each.name}={each.value}" for each in settings.describe() if not each.is_default]
        yield ok("settings", ", ".join(changed) or "all have their defaults")
        ignored = ignored_brokers(self.cluster.app, settings)
        if ignored is not None:
            used, others = ignored
            yield warn(
                "broker",
                f"a list of Redis servers: {used} holds the lease and takes all messages, {others} is never used. Set "
                f"ha_beat_redis_url to one Redis, so that messages fail over as Celery's do",
            )
        if settings.misfire == "skip":
            yield note("misfire", "skip: occurrences that fall due while there is no leader are skipped")

    def _scheduler(self, view: ClusterView) -> Iterator[Finding]:
        """Check that the replicas run the scheduler that the settings name."""
        configured = str(self.cluster.app.conf.beat_scheduler or "")
        if "ha_beat" not in configured:
            detail = f"beat_scheduler is {configured!r}" if configured else "beat_scheduler is not set"
            yield note("scheduler", f"{detail}: a beat started without -S ha_beat is not part of the cluster")
            return
        wanted = _scheduler_class(configured)
        others = {member.scheduler for member in view.members if member.scheduler not in {"", wanted}}
        for scheduler in sorted(others):
            ids = ", ".join(member.id for member in view.members if member.scheduler == scheduler)
            detail = f"beat_scheduler is {configured!r}, but {ids} run {scheduler} (the option -S wins)"
            yield warn("scheduler", detail)

    # --- Servers

    def _redis(self, _: ClusterView) -> Iterator[Finding]:
        name = redact_url(self.cluster.settings.redis_url or str(self.cluster.app.conf.broker_url))
        yield from check_redis(self.cluster.client(), name, self.cluster.settings.on_state_loss, self.cluster.clock)
        yield from check_failover(self.cluster.client())

    def _broker(self, _: ClusterView) -> Iterator[Finding]:
        if self.cluster.settings.redis_url is not None:
            yield check_broker(self.cluster.app, self._broker_client(), self.cluster.settings.command_timeout)

    def _broker_client(self) -> Callable[[], Any] | None:
        return broker_client(self.cluster.app, self.cluster.settings)

    def _store(self, _: ClusterView) -> Iterator[Finding]:
        """Check that the broker's Redis names this store as the lease store."""
        broker = self._broker_client()
        if broker is None:
            return
        try:
            with mapped_redis_errors():
                mark = read_mark(broker(), self.cluster.keys)
        except StoreError as exc:
            yield note("lease's store", f"not checked: the broker's Redis failed: {exc}")
            return
        if mark is None:
            return
        client = self.cluster.client()
        gen = client.hget(self.cluster.keys.ledger, "m:gen")
        if mark.gen == (text(gen) if gen is not None else "") or (mark.place and mark.place == place_of(client)):
            yield ok("lease's store", mark.name)
        else:
            name = lease_redis_name(self.cluster.app, self.cluster.settings)
            yield fail("lease's store", two_stores(mark, self.cluster.keys, name))

    # --- Clocks and cluster

    def _clocks(self, view: ClusterView) -> Iterator[Finding]:
        # Read here: since the first view, slow checks may have taken seconds.
        sent = self.cluster.clock.elapsed()
        server = self.cluster.members.view().server_ms / 1000
        offset = certain_offset(self.cluster.clock.wall() - server, self.cluster.clock.elapsed() - sent)
        yield (ok if abs(offset) <= _CLOCK_TOLERANCE else warn)(
            "clock", f"this machine's clock differs from Redis' clock by {offset:+.2f} s"
        )
        for member in view.members:
            away = member.clock_offset_ms / 1000
            if abs(away) > _CLOCK_TOLERANCE:
                yield warn("clock", f"the clock of {member.id} differs from Redis' clock by {away:+.1f} s")

    def _cluster(self, view: ClusterView) -> Iterator[Finding]:
        lease = view.lease
        if lease is None:
            yield fail("leader", f"the cluster {self.cluster.settings.cluster!r} has never had a leader on this Redis")
        elif not lease.held:
            words = phrase(lease.reason, lease.detail)
            yield fail("leader", f"no leader: {lease.holder} released the lease ({words})")
        elif view.leader is None:
            yield fail("leader", f"no leader: {lease.holder} holds the lease and does not renew it")
        else:
            yield ok("leader", f"{lease.holder} in epoch {lease.epoch}")
        if lease is not None and lease.held and not lease.presence:
            yield note("presence", "the leader has registered none: a takeover from a dead process waits for lease_ttl")
        app = fingerprint(self.cluster.app)
        known = self.cluster.client().hget(self.cluster.keys.ledger, "m:fingerprint")
        if known is not None and text(known) != app:
            yield fail("app", f"the ledger belongs to the app {text(known)!r}, this app is {app!r} and must not lead")
        else:
            yield ok("app", app)
        standbys = [member for member in view.members if member.role != "leader"]
        count = f"{len(view.members)} alive, {len(standbys)} on standby"
        yield ok("replicas", count) if standbys else warn("replicas", f"{count}: no standby can take over")
        for member in view.members:
            for why in health(member.not_ready):
                yield warn("replica", f"{member.id} could not lead: {why}")
        yield from _differences(view)
        if view.paused:
            yield warn("paused", pause_text(Pause.parse(view.paused)))

    def _leader(self, view: ClusterView) -> Iterator[Finding]:
        if view.lease is None or not view.lease.held:
            return
        try:
            reply = self.cluster.ask(RequestKind.REPORT, by="doctor", timeout=self.timeout)
        except StoreRefused as exc:
            yield fail("redis", f"it refuses writes: {exc}")
            return
        except (NoAnswer, TooManyRequests) as exc:
            yield fail("main loop", f"the leader did not answer: {exc}")
            return
        report = reply.data
        dispatch: Mapping[str, str] = report.get("dispatch") or {}
        why = phrase_of(PathReason, dispatch.get("why", ""))
        yield ok("dispatch", f"{dispatch['path']}: {why}" if dispatch.get("path") else "not chosen yet")
        if dispatch.get("path") == DispatchPath.CLAIM:
            yield note(
                "dispatch",
                f"a message whose delivery is unknown: {self.cluster.settings.uncertain} (setting uncertain)",
            )
        count = entries_text(report.get("entries", 0))
        yield ok("schedule", f"the leader has {count}, {report.get('backlog')} due")
        longest = float(report.get("longest_overdue") or 0.0)
        if longest > _OVERDUE and not report.get("paused"):
            yield fail("invariant", f"overdue: an entry has been due for {longest:.0f} s")
        for entry, fault in list((report.get("failing") or {}).items())[:_LISTED]:
            why = phrase_of(EntryFault, fault["reason"], fault["detail"])
            yield fail("entry", f"{entry}: {why}")

    # --- The schedule of the app

    def _entries(self, view: ClusterView) -> Iterator[Finding]:
        """Check the entries of ``beat_schedule``. The leader reports those of a database."""
        now, faults, count = from_micros(view.server_ms * 1000), 0, 0
        configured: Mapping[str, Any] = self.cluster.app.conf.beat_schedule or {}
        for name, fields in configured.items():
            count += 1
            try:
                entry = (
                    fields
                    if isinstance(fields, ScheduleEntry)
                    else ScheduleEntry(**{"name": name, **dict(fields), "app": self.cluster.app})
                )
                EntryOptions.of(
                    name, entry.options or {}, MisfireRules(), starting_deadline(entry), self.cluster.settings.uncertain
                )
                instants = recurrence_of(entry)
                if instants is not None:
                    instants.next_after(now)
            except Exception as exc:
                faults += 1
                if faults <= _LISTED:
                    yield fail("entry", f"{name} can't be scheduled: {exception_line(exc)}")
        if faults > _LISTED:
            yield fail("entry", f"and {faults - _LISTED} more can't be scheduled")
        if count and not faults:
            yield ok("entries", f"all {count} of beat_schedule can be scheduled")

    def _overlap(self, view: ClusterView) -> Iterator[Finding]:
        """Check that workers report the messages for whose end entries wait."""
        busy = BusyEntries.read(self.cluster.client(), self.cluster.keys)
        waiting = busy.unreported(view.server_ms - round(_RECEIVED_WITHIN * 1000))
        if waiting:
            entry = min(waiting, key=lambda each: waiting[each])
            detail = f"{entries_text(len(waiting))} wait for their last message, {entry} since "
            detail += f"{instant(from_micros(waiting[entry] * 1000))}, and no worker has reported since: start the "
            yield warn("overlap", f"{detail}workers, and load ha_beat.guard in them")
        elif busy.reported_ms:
            last = instant(from_micros(busy.reported_ms * 1000))
            yield ok("overlap", f"a worker reported at {last}, {len(busy.sent_ms)} messages are unfinished")

    # --- Journal

    def _records(self, view: ClusterView) -> Iterator[Finding]:
        records = self.cluster.journal.newest(MEMORY)
        # The counter is read after the journal, so it can't be behind it.
        view = self.cluster.members.view()
        invariants = Invariants(emit=lambda _: None)
        violations = invariants.check(ClusterState.of(view), reversed(records))
        for violation in violations[:_LISTED]:
            yield fail("invariant", f"{phrase(violation.rule)} ({violation.subject}): {violation.detail}")
        if not violations:
            yield ok("invariants", f"all hold in the newest {len(records)} journal records")
        uncertain = [r for r in records if isinstance(r, VerdictRecord) and r.verdict == Verdict.UNCERTAIN]
        if uncertain:
            newest = uncertain[0]
            what = f"{len(uncertain)}, the newest is {newest.label}, due {instant(newest.first)}"
            yield warn("uncertain occurrences", what)
        lost = sum(r.count for r in records if isinstance(r, VerdictRecord) and r.reason == SkipReason.STATE_LOSS)
        if lost:
            yield warn(
                "state loss",
                f"{lost} occurrences were skipped because Redis lost data: ha-beat history --verdict skipped",
            )


def _scheduler_class(configured: str) -> str:
    """Return the class that the setting ``beat_scheduler`` names, as ``module:Class``."""
    aliases: Any = load_extension_class_names("celery.beat_schedulers")
    path = str(dict(aliases).get(configured, configured))
    try:
        cls = symbol_by_name(path)
    except Exception:
        # A scheduler for Django can't be imported by a command line that has not set Django up.
        module, _, name = path.replace(":", ".").rpartition(".")
        return f"{module}:{name}"
    return f"{cls.__module__}:{cls.__qualname__}"


def _differences(view: ClusterView) -> Iterator[Finding]:
    """Check that version, schedule (a digest) and app of the replicas are equal."""
    for what in ("version", "schedule", "fingerprint"):
        having: dict[str, list[str]] = {}
        for member in view.members:
            if getattr(member, what):
                having.setdefault(getattr(member, what), []).append(member.id)
        if len(having) > 1:
            normal = "" if what == "fingerprint" else ", which is normal only during a deploy"
            parted = "; ".join(f"{value} on {', '.join(ids)}" for value, ids in sorted(having.items()))
            called = "app" if what == "fingerprint" else what
            yield warn("replicas", f"they differ in their {called}{normal}: {parted}")
