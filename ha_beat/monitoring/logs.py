"""Log lines of events: constant messages, with the event's ``action`` and fields as attributes of the record."""

from __future__ import annotations

import dataclasses
import logging
import traceback
from datetime import UTC, datetime
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any

from ha_beat import events as e
from ha_beat.exception_text import without_secrets
from ha_beat.monitoring.request_wording import reply_text
from ha_beat.monitoring.wording import due, duration, duty_effect, entries_text, instant, occurrences, phrase, sentence
from ha_beat.reasons import SkipReason, TermEnd

logger = logging.getLogger("ha_beat")

#: Start of a pause whose record cannot be read.
_EPOCH = datetime.fromtimestamp(0, UTC)

#: Level, constant message, values of the message.
Line = tuple[int, str, tuple[object, ...]]

#: Most tracebacks that are remembered as logged.
_TRACEBACKS = 1000


class _TracebackFilter(logging.Filter):
    """Filter that removes secrets from tracebacks, which contain the text of the exception."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            safe = without_secrets(text)
            if safe != text:
                record.exc_info, record.exc_text = None, safe
        return True


_traceback_filter = _TracebackFilter()


class LogWriter:
    """Subscriber that logs events."""

    def __init__(self, replica: str, cluster: str) -> None:
        self._context = {"cluster": cluster, "replica": replica}
        self._traced: set[tuple[object, ...]] = set()
        logger.addFilter(_traceback_filter)

    @staticmethod
    def wants(event: e.Event) -> bool:
        """True unless the event has no line at the log's level. Called for each message of a burst."""
        if isinstance(event, e.Enqueued):
            return logger.isEnabledFor(INFO)
        return not isinstance(event, e.BatchDispatched) or event.already_mine > 0 or logger.isEnabledFor(DEBUG)

    def __call__(self, event: e.Event) -> None:
        line = line_of(event, self._context["cluster"])
        if line is None:
            return
        level, message, values = line
        if logger.isEnabledFor(level):
            exc = event.exc if isinstance(event, e.EntryFailed | e.DutyLate | e.TurnFailed) else None
            if isinstance(event, e.EntryFailed) and not self._is_new(event):
                exc = None
            extra = {**self._context, **_fields(event), "action": event.action}
            logger.log(level, message, *values, exc_info=exc, extra=extra)

    def _is_new(self, event: e.EntryFailed) -> bool:
        """True if no error of this type and place was logged for this entry. The text may differ each time."""
        frames = traceback.extract_tb(getattr(event.exc, "__traceback__", None))
        place = (frames[-1].filename, frames[-1].lineno) if frames else None
        key = (event.entry, event.reason, type(event.exc), place)
        if key in self._traced:
            return False
        if len(self._traced) >= _TRACEBACKS:
            self._traced.clear()
        self._traced.add(key)
        return True


def line_of(event: e.Event, cluster: str) -> Line | None:
    """Return the log line of an event, or ``None`` if it has none."""
    # Dispatch comes first, because its events are by far the most frequent.
    return _dispatch(event) or _election(event, cluster) or _redis(event) or _requests(event) or _failures(event)


def _fields(event: e.Event) -> dict[str, Any]:
    names = (field.name for field in dataclasses.fields(event))
    return {name: getattr(event, name) for name in names if name != "exc"}


def _election(event: e.Event, cluster: str) -> Line | None:
    match event:
        case e.TermStarted(epoch, previous, reason):
            values = (cluster, epoch, phrase(reason), previous or "none")
            return INFO, "Leading %s in epoch %s: %s; previous leader: %s", values
        case e.TermEnded(epoch, reason, led_for, detail):
            level = INFO if reason == TermEnd.SHUTDOWN else WARNING
            why = phrase(reason, detail)
            return level, "Stopped leading after %s (epoch %s): %s", (duration(led_for), epoch, why)
        case e.LeaderSeen(holder, epoch):
            return INFO, "Standing by in cluster %s: the leader is %s (epoch %s)", (cluster, holder, epoch)
        case e.LeaseUnreachable(detail, leading):
            then = "leading until trust in the lease expires" if leading else "standing by"
            return WARNING, "The lease in Redis is unreachable (%s): %s", (detail.rstrip("."), then)
        case e.LeaseReachable(after):
            return INFO, "The lease in Redis is reachable again after %s", (duration(after),)
        case e.PresenceLost(detail):
            return WARNING, "The presence connection ended (%s): reconnecting", (detail.rstrip("."),)
        case e.LeadingForbidden(reason, detail):
            return ERROR, "This replica can't lead, because %s: %s", (phrase(reason), detail)
        case e.ElectionFailed(detail):
            return ERROR, "The election failed; not leading until it works again: %s", (detail,)
    return None


def _dispatch(event: e.Event) -> Line | None:
    match event:
        case e.Enqueued(entry, task, task_id, _, lateness):
            return INFO, "Enqueued %s (%s[%s]), %s after it was due", (entry, task, task_id, duration(lateness))
        case e.OccurrenceSkipped(entry, first, until, count, reason, detail):
            why = phrase(reason, detail)
            level = INFO if reason in {SkipReason.DECLINED, SkipReason.OVERLAP, SkipReason.PAUSED} else WARNING
            return level, "Skipped %s, %s: %s", (entry, due(first, until, count), why)
        case e.OccurrenceUncertain(entry, at, task_id, reason, detail):
            values = (entry, instant(at) if at else "at an unknown time", task_id, phrase(reason, detail))
            return ERROR, "Delivery of %s, due %s, is unknown (task id %s): %s", values
        case e.ScheduleReady(entries, overdue, new):
            return INFO, "Scheduling %s: %s overdue, %s new to the ledger", (entries_text(entries), overdue, new)
        case e.BatchDispatched(size, seconds, already_mine):
            level = WARNING if already_mine else DEBUG
            message = "Dispatched a batch of %s in %s; %s were enqueued by an earlier attempt without a reply"
            return level, message, (size, duration(seconds), already_mine)
        case e.DispatchFenced(epoch, size, reason, detail):
            why = phrase(reason, detail)
            return WARNING, "Redis refused %s under epoch %s: %s", (occurrences(size), epoch, why)
        case e.DispatchFailed(tries=tries) | e.LedgerReadFailed(tries=tries) if tries > 1:
            return None
        case e.LedgerReadFailed(detail):
            return WARNING, "Can't read the ledger, retrying: %s", (detail,)
        case e.DispatchFailed(size, detail):
            return WARNING, "Can't dispatch %s, retrying: %s", (occurrences(size), detail)
        case e.PathChosen(path, reason):
            return INFO, "Dispatch path %s: %s", (path, phrase(reason))
        case e.EntryFailed(entry, reason, detail):
            return ERROR, "Entry %s: %s", (entry, phrase(reason, detail))
    return None


def _redis(event: e.Event) -> Line | None:
    match event:
        case e.StateLost(reason, catch_up):
            then = "enqueued again" if catch_up else "skipped, to avoid duplicates"
            message = "Redis lost data: %s. Occurrences that may have been enqueued before are %s"
            return ERROR, message, (phrase(reason), then)
        case e.DispatchHeld(seconds):
            message = "Another Redis server answers: nothing is enqueued for %s, until the previous leader has stopped"
            return WARNING, message, (duration(seconds),)
        case e.ServerMayForget(reason, detail):
            return WARNING, "Redis may lose the cluster's records: %s", (phrase(reason, detail),)
        case e.BrokersIgnored(used, ignored):
            message = "The broker is a list of Redis servers: only %s holds the lease and takes messages, not %s"
            return WARNING, message, (used, ignored)
        case e.ScheduleRestored(restored, known):
            message = "The schedule's store had lost its data: %s of %s entries were restored from memory"
            return WARNING, message, (restored, known)
        case e.OtherSchedulerSeen(runs, seconds):
            state = "is renewed" if runs else "is held"
            message = "The lock of the store's own scheduler %s (expires in %s): two schedulers enqueue entries twice"
            return WARNING, message, (state, duration(seconds))
        case e.ClockJumped(seconds, followed):
            then = "follows it" if followed else "does not follow it"
            return WARNING, "The wall clock moved by %+.1f s against the other clocks; the schedule %s", (seconds, then)
        case e.ClockOffset(seconds):
            return WARNING, "This machine's clock differs from Redis' clock by %+.1f s", (seconds,)
    return None


def _requests(event: e.Event) -> Line | None:
    match event:
        case e.Paused(since, by, reason):
            message = "The cluster is paused since %s by %s (%s): run `celery ha-beat resume` to resume it"
            when = instant(since) if since > _EPOCH else "an unknown time"
            return WARNING, message, (when, by or "an unknown user", reason or "no reason given")
        case e.Resumed(by, after):
            return WARNING, "The cluster was resumed by %s after %s", (by, duration(after))
        case e.RequestAnswered(kind, by, code, data):
            answer = reply_text(code, data)
            return INFO if code.ok else WARNING, "Request of %s to %s: %s", (by, phrase(kind), answer)
        case e.EnqueuedOnRequest(entry, task, task_id, scheduled_at, kind, by):
            values = (entry, task, task_id, instant(scheduled_at), kind, by)
            return INFO, "Enqueued %s (%s[%s]) of %s (%s) for %s", values
    return None


def _failures(event: e.Event) -> Line | None:
    match event:
        case e.InvariantBroken(rule, subject, detail):
            return ERROR, "An invariant is broken: %s (%s): %s", (phrase(rule), subject, detail)
        case e.DutyLate(duty, reason, seconds, detail):
            why = phrase(reason, detail)
            values = (sentence(phrase(duty)), duration(seconds), why, duty_effect(duty))
            return WARNING, "%s has not worked for %s: %s. %s", values
        case e.RecordUnreadable(record):
            return WARNING, "A record in Redis can't be read and is ignored: %s", (record,)
        case e.EventsDropped(duty, count):
            return ERROR, "%s events were dropped: %s was blocked", (count, phrase(duty))
        case e.TurnFailed():
            return ERROR, "A turn of the scheduler failed; retrying each second", ()
        case e.ThreadRestarted(thread, detail):
            return ERROR, "The thread %s ended and is started again: %s", (thread, detail)
        case e.DutyResumed(duty, after):
            return INFO, "%s works again after %s", (sentence(phrase(duty)), duration(after))
    return None
