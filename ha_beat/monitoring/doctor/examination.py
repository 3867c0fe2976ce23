"""Checks of a cluster's configuration and state, from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
from ha_beat.monitoring.request_wording import pause_text, why_free
from ha_beat.monitoring.status.poller import certain_offset
from ha_beat.monitoring.status.warnings import CLOCK_TOLERANCE
from ha_beat.monitoring.wording import entries_text, health, instant, phrase, phrase_of
from ha_beat.reasons import DispatchPath, EntryFault, PathReason, RequestKind, SkipReason, Verdict
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.recurrence import recurrence_of, starting_deadline
from ha_beat.store.busy_entries import BusyEntries
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import VerdictRecord
from ha_beat.store.membership import ClusterView
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.request_queue import NoAnswer, TooManyRequests
from ha_beat.store.scripts import text

#: Seconds for which an entry may be overdue.
_OVERDUE = 60.0

#: Seconds within which a worker that is not overloaded receives a message.
_RECEIVED_WITHIN = 60.0

#: Findings of one kind that are listed.
_LISTED = 10


def examine(cluster: ClusterClient, timeout: float = 5.0) -> list[Finding]:
    """Run all checks, and return their results. ``timeout`` is the time in seconds to wait for the leader's answer.

    Raises:
        StoreError: Redis does not answer.
    """
    view = cluster.view()
    found = [*_settings(cluster)]
    checks: dict[str, Callable[[ClusterClient, ClusterView], Iterator[Finding]]] = {
        "scheduler": _scheduler,
        "redis": _redis,
        "broker": _broker,
        "store": _store,
        "clocks": _clocks,
        "cluster": _cluster,
        "leader": partial(_leader, timeout=timeout),
        "entries": _entries,
        "overlap": _overlap,
        "records": _records,
    }
    for name, check in checks.items():
        try:
            with mapped_redis_errors():
                found += check(cluster, view)
        except StoreUnavailable:
            raise
        except StoreRefused as exc:
            # For example a missing right. The other checks still run.
            found.append(note(name, f"not checked: {exc}"))
        except Exception as exc:
            found.append(warn(name, f"this check failed with an internal error: {exception_line(exc)}"))
    return found


# --- Settings


def _settings(cluster: ClusterClient) -> Iterator[Finding]:
    settings = cluster.settings
    changed = [f"{each.name}={each.value}" for each in settings.describe() if not each.is_default]
    yield ok("settings", ", ".join(changed) or "all are defaults")
    ignored = ignored_brokers(cluster.app, settings)
    if ignored is not None:
        used, others = ignored
        detail = (
            f"the broker is a list of Redis servers: only {used} holds the lease and takes messages, not {others}. "
        )
        yield warn("broker", f"{detail}Set ha_beat_redis_url to one Redis; then messages fail over as Celery's do")
    if settings.misfire == "skip":
        yield note("misfire", "skip: occurrences that fall due while there is no leader are skipped")


def _scheduler(cluster: ClusterClient, view: ClusterView) -> Iterator[Finding]:
    """Check that the replicas run the scheduler that the settings name."""
    configured = str(cluster.app.conf.beat_scheduler or "")
    if "ha_beat" not in configured:
        detail = f"beat_scheduler is {configured!r}" if configured else "beat_scheduler is not set"
        yield note("scheduler", f"{detail}: a beat that is started without -S ha_beat does not join the cluster")
        return
    wanted = _scheduler_class(configured)
    others = {member.scheduler for member in view.members if member.scheduler not in {"", wanted}}
    for scheduler in sorted(others):
        ids = ", ".join(member.id for member in view.members if member.scheduler == scheduler)
        detail = f"beat_scheduler is {configured!r}, but {ids} run {scheduler} (the option -S wins)"
        yield warn("scheduler", detail)


def _scheduler_class(configured: str) -> str:
    """Return the class that the setting ``beat_scheduler`` names, as ``module:Class``."""
    aliases: Any = load_extension_class_names("celery.beat_schedulers")
    path = str(dict(aliases).get(configured, configured))
    try:
        cls = symbol_by_name(path)
    except Exception:
        # A scheduler for Django can't be imported unless Django is set up.
        module, _, name = path.replace(":", ".").rpartition(".")
        return f"{module}:{name}"
    return f"{cls.__module__}:{cls.__qualname__}"


# --- Servers


def _redis(cluster: ClusterClient, _: ClusterView) -> Iterator[Finding]:
    yield from check_redis(cluster.client(), cluster.redis_name, cluster.settings.on_state_loss, cluster.clock)
    yield from check_failover(cluster.client())


def _broker(cluster: ClusterClient, _: ClusterView) -> Iterator[Finding]:
    if cluster.settings.redis_url is not None:
        yield check_broker(cluster.app, broker_client(cluster.app, cluster.settings), cluster.settings.command_timeout)


def _store(cluster: ClusterClient, _: ClusterView) -> Iterator[Finding]:
    """Check that the broker's Redis names this store as the lease store."""
    broker = broker_client(cluster.app, cluster.settings)
    if broker is None:
        return
    try:
        with mapped_redis_errors():
            mark = read_mark(broker(), cluster.keys)
    except StoreError as exc:
        yield note("lease's store", f"not checked: the broker's Redis failed: {exc}")
        return
    if mark is None:
        return
    client = cluster.client()
    gen = client.hget(cluster.keys.ledger, "m:gen")
    if mark.gen == (text(gen) if gen is not None else "") or (mark.place and mark.place == place_of(client)):
        yield ok("lease's store", mark.name)
    else:
        name = lease_redis_name(cluster.app, cluster.settings)
        yield fail("lease's store", two_stores(mark, cluster.keys, name))


# --- Clocks and cluster


def _clocks(cluster: ClusterClient, view: ClusterView) -> Iterator[Finding]:
    # Read again, because other checks may have taken seconds since the first view.
    sent = cluster.clock.elapsed()
    server = cluster.members.view().server_ms / 1000
    offset = certain_offset(cluster.clock.wall() - server, cluster.clock.elapsed() - sent)
    result = ok if abs(offset) <= CLOCK_TOLERANCE else warn
    yield result("clock", f"this machine's clock differs from Redis' clock by {offset:+.2f} s")
    for member in view.members:
        away = member.clock_offset_ms / 1000
        if abs(away) > CLOCK_TOLERANCE:
            yield warn("clock", f"the clock of {member.id} differs from Redis' clock by {away:+.1f} s")


def _cluster(cluster: ClusterClient, view: ClusterView) -> Iterator[Finding]:
    lease = view.lease
    if lease is None:
        yield fail("leader", f"the cluster {cluster.settings.cluster!r} has never had a leader on this Redis")
    elif view.leader is None:
        yield fail("leader", f"no leader: {why_free(lease)}")
    else:
        yield ok("leader", f"{lease.holder} in epoch {lease.epoch}")
    if lease is not None and lease.held and not lease.presence:
        yield note(
            "presence", "the leader has no presence connection: if its process dies, the takeover waits for lease_ttl"
        )
    app = fingerprint(cluster.app)
    known = cluster.client().hget(cluster.keys.ledger, "m:fingerprint")
    if known is not None and text(known) != app:
        yield fail("app", f"the ledger belongs to the app {text(known)!r}; this app, {app!r}, must not lead")
    else:
        yield ok("app", app)
    standbys = [member for member in view.members if member.role != "leader"]
    count = f"{len(view.members)} alive, {len(standbys)} of them standbys"
    yield ok("replicas", count) if standbys else warn("replicas", f"{count}: no standby can take over")
    for member in view.members:
        for why in health(member.not_ready):
            yield warn("replica", f"{member.id} is not ready to lead: {why}")
    yield from _differences(view)
    if view.paused:
        yield warn("paused", pause_text(Pause.parse(view.paused)))


def _differences(view: ClusterView) -> Iterator[Finding]:
    """Check that the replicas have the same version, the same schedule (a digest) and the same app."""
    during_deploy = ", which is normal only during a deploy"
    for field, words in {
        "version": f"version{during_deploy}",
        "schedule": f"schedule{during_deploy}",
        "fingerprint": "app",
    }.items():
        having: dict[str, list[str]] = {}
        for member in view.members:
            if value := getattr(member, field):
                having.setdefault(value, []).append(member.id)
        if len(having) > 1:
            groups = "; ".join(f"{value} on {', '.join(ids)}" for value, ids in sorted(having.items()))
            yield warn("replicas", f"they differ in their {words}: {groups}")


def _leader(cluster: ClusterClient, view: ClusterView, timeout: float) -> Iterator[Finding]:
    if view.lease is None or not view.lease.held:
        return
    try:
        reply = cluster.ask(RequestKind.REPORT, by="doctor", timeout=timeout)
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
        policy = cluster.settings.uncertain
        yield note("dispatch", f"setting uncertain is {policy!r}: it applies to messages whose delivery is unknown")
    count = entries_text(report.get("entries", 0))
    yield ok("schedule", f"the leader has {count}, {report.get('backlog')} due")
    longest = float(report.get("longest_overdue") or 0.0)
    if longest > _OVERDUE and not report.get("paused"):
        yield fail("invariant", f"overdue: an entry has been due for {longest:.0f} s")
    for entry, fault in list((report.get("failing") or {}).items())[:_LISTED]:
        why = phrase_of(EntryFault, fault["reason"], fault["detail"])
        yield fail("entry", f"{entry}: {why}")


# --- The schedule of the app


def _entries(cluster: ClusterClient, view: ClusterView) -> Iterator[Finding]:
    """Check the entries of ``beat_schedule``. The leader reports those of a database."""
    now, uncertain = from_micros(view.server_ms * 1000), cluster.settings.uncertain
    configured: Mapping[str, Any] = cluster.app.conf.beat_schedule or {}
    faults = []
    for name, entry in configured.items():
        try:
            if not isinstance(entry, ScheduleEntry):
                entry = ScheduleEntry(**{"name": name, **dict(entry), "app": cluster.app})  # noqa: PLW2901
            EntryOptions.of(name, entry.options or {}, MisfireRules(), starting_deadline(entry), uncertain)
            recurrence = recurrence_of(entry)
            if recurrence is not None:
                recurrence.next_after(now)
        except Exception as exc:
            faults.append(fail("entry", f"{name} can't be scheduled: {exception_line(exc)}"))
    yield from faults[:_LISTED]
    if len(faults) > _LISTED:
        yield fail("entry", f"and {len(faults) - _LISTED} more can't be scheduled")
    if configured and not faults:
        yield ok("entries", f"all {len(configured)} of beat_schedule can be scheduled")


def _overlap(cluster: ClusterClient, view: ClusterView) -> Iterator[Finding]:
    """Check that workers report the end of the messages that entries with ``overlap = "skip"`` wait for."""
    busy = BusyEntries.read(cluster.client(), cluster.keys)
    waiting = busy.unreported(view.server_ms - round(_RECEIVED_WITHIN * 1000))
    if waiting:
        entry = min(waiting, key=lambda each: waiting[each])
        detail = f"{entries_text(len(waiting))} wait for their last message, {entry} since "
        detail += f"{instant(from_micros(waiting[entry] * 1000))}, and no worker has reported since: start the "
        yield warn("overlap", f"{detail}workers, and load ha_beat.guard in them")
    elif busy.reported_ms:
        last = instant(from_micros(busy.reported_ms * 1000))
        yield ok("overlap", f"a worker reported at {last}; {len(busy.sent_ms)} messages are unfinished")


# --- Journal


def _records(cluster: ClusterClient, view: ClusterView) -> Iterator[Finding]:
    records = cluster.journal.newest(MEMORY)
    # Read after the journal, so that the counter can't be behind the records.
    view = cluster.members.view()
    invariants = Invariants(emit=lambda _: None)
    violations = invariants.check(ClusterState.of(view), reversed(records))
    for violation in violations[:_LISTED]:
        yield fail("invariant", f"{phrase(violation.rule)} ({violation.subject}): {violation.detail}")
    if not violations:
        yield ok("invariants", f"all hold in the newest {len(records)} journal records")
    uncertain = [r for r in records if isinstance(r, VerdictRecord) and r.verdict == Verdict.UNCERTAIN]
    if uncertain:
        newest = uncertain[0]
        detail = f"{len(uncertain)}; the newest is {newest.label}, due {instant(newest.first)}"
        yield warn("uncertain occurrences", detail)
    lost = sum(max(r.count, 1) for r in records if isinstance(r, VerdictRecord) and r.reason == SkipReason.STATE_LOSS)
    if lost:
        detail = f"{lost} occurrences were skipped because Redis lost data; see ha-beat history --verdict skipped"
        yield warn("state loss", detail)
