"""Words events for a person who reads the log. The field ``action`` of a record is for machines."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from ha_beat import events as e
from ha_beat.monitoring.wording import term_end_in_words, term_start_in_words
from ha_beat.reasons import TermEnd

logger = logging.getLogger("ha_beat")

_IN_WORDS = {
    "coalesced": "coalesced (overdue; only the latest runs)",
    "missed": "missed (overdue, and misfire is 'skip')",
    "misfire_grace": "misfire_grace (too late to be of use, as it is set)",
    "misfire_limit": "misfire_limit (more are overdue than shall be caught up)",
    "state_loss": "state_loss (Redis lost its data, and it may have been enqueued)",
    "edited": "edited (due by the entry's old schedule, while nobody led)",
}


class LogWriter:
    """Subscribes to events and writes one line for each that somebody would want to read."""

    def __init__(self, replica: str, cluster: str) -> None:
        self._replica = replica
        self._cluster = cluster

    def __call__(self, event: e.Event) -> None:
        level, line = self._word(event)
        if line and logger.isEnabledFor(level):
            exc = event.exc if isinstance(event, e.EntryFailed) else None
            extra = {"action": type(event).__name__, "cluster": self._cluster, "replica": self._replica}
            logger.log(level, "%s", line, exc_info=exc, extra=extra)

    def _word(self, event: e.Event) -> tuple[int, str]:  # noqa: PLR0912, PLR0915 -- one case for each event
        match event:
            case e.Enqueued(entry, task, task_id, _, lateness):
                return (
                    logging.INFO,
                    f"Enqueued {entry} ({task}[{task_id}]), {_seconds(lateness)} after it was due",
                )
            case e.TermStarted(epoch, previous, reason):
                after = f"; {previous} led before" if previous else ""
                return logging.INFO, f"Leading {self._cluster} in epoch {epoch}: {term_start_in_words(reason)}{after}"
            case e.TermEnded(epoch, reason, led_for, detail):
                level = logging.INFO if reason is TermEnd.SHUTDOWN else logging.WARNING
                words = term_end_in_words(reason, detail)
                return level, f"No longer leading (epoch {epoch}, for {_seconds(led_for)}): {words}"
            case e.LeaderSeen(holder, epoch):
                return logging.INFO, f"Standing by: {holder} leads {self._cluster} in epoch {epoch}"
            case e.LeaseUnreachable(why, leading):
                then = "still leading, for as long as the lease may be trusted" if leading else "standing by"
                return logging.WARNING, f"No access to the lease in Redis: {why.rstrip('.')}; {then}"
            case e.LeaseReachable(after):
                return logging.INFO, f"Access to the lease in Redis is back after {_seconds(after)}"
            case e.PresenceLost(why):
                knows = "by which Redis knows that this process lives"
                return (
                    logging.WARNING,
                    f"The presence connection has ended, {knows} ({why.rstrip('.')}): opening another",
                )
            case e.PresenceUnavailable(why):
                return (
                    logging.WARNING,
                    f"No presence connection ({why}): if this process dies, it is noticed only when its lease runs out",
                )
            case e.FollowFailed(why):
                return logging.WARNING, f"This standby can't follow what the leader records, and trying again ({why})"
            case e.LeadingForbidden(why):
                return logging.ERROR, f"This replica can't lead: {why}"
            case e.StoreUnmarked(why):
                return (
                    logging.WARNING,
                    f"The broker's Redis can't be marked ({why}): a second store for the lease would go unnoticed",
                )
            case e.ElectionFailed(why):
                return logging.ERROR, f"The election failed; not leading until it works again: {why}"
            case e.ScheduleReady(entries, overdue, new):
                return (
                    logging.INFO,
                    f"Scheduling {entries} entries: {overdue} overdue, {new} new to the ledger",
                )
            case e.OccurrenceSkipped(entry, first, until, count, reason):
                many = f"{count} occurrences" if count > 0 else "all occurrences"
                due = (
                    f"due {_instant(first)}"
                    if count == 1
                    else f"{many} due from {_instant(first)} to before {_instant(until)}"
                )
                return logging.WARNING, f"Skipped {entry}, {due}: {_IN_WORDS.get(reason, reason)}"
            case e.OccurrenceUncertain(entry, at, task_id, reason, detail):
                of = f" of {_instant(at)}" if at else ""
                return (
                    logging.ERROR,
                    f"Nobody knows whether {entry}{of} was enqueued (task id {task_id}): {detail or reason}",
                )
            case e.StateLost(why, catch_up):
                then = "enqueued again" if catch_up else "skipped, not to be enqueued twice"
                return logging.ERROR, f"Redis lost state: {why}. What may have been enqueued before is {then}"
            case e.DispatchHeld(seconds):
                then = f"nothing is enqueued for {_seconds(seconds)}, so that the old one stops first"
                return logging.WARNING, f"Another Redis server answers: {then}"
            case e.PathChosen(path, path_reason):
                return logging.INFO, f"Dispatch path {path}: {path_reason}"
            case e.ClockJumped(seconds, followed):
                then = "scheduling follows it" if followed else "scheduling does not follow it"
                return logging.WARNING, f"The wall clock stepped by {seconds:+.1f} s; {then}"
            case e.ServerMayForget(why):
                return logging.WARNING, f"Redis may lose what the cluster records: {why}"
            case e.ClockOffset(seconds):
                return logging.WARNING, f"This machine's clock and that of Redis differ by {seconds:+.1f} s"
            case e.EntryFailed(entry, why):
                return logging.ERROR, f"Entry {entry}: {why}"
            case e.BatchDispatched(size, seconds, already_mine) if already_mine:
                return (
                    logging.WARNING,
                    f"A reply had been lost: {already_mine} of {size} were enqueued already ({_seconds(seconds)})",
                )
            case e.BatchDispatched(size, seconds):
                return logging.DEBUG, f"Dispatched a batch of {size} in {_seconds(seconds)}"
            case e.DispatchFenced(epoch, size, reason, detail):
                words = term_end_in_words(reason, detail)
                return logging.WARNING, f"Redis refused {_occurrences(size)} under epoch {epoch}: {words}"
            case e.DispatchFailed() if event.tries > 1:
                return logging.DEBUG, ""
            case e.DispatchFailed(0, why):
                return logging.WARNING, f"Can't take up the schedule, trying again: {why}"
            case e.DispatchFailed(size, why):
                return logging.WARNING, f"Can't hand over {_occurrences(size)}, trying again: {why}"
            case e.Paused(since, by, reason):
                why = reason or "no reason given"
                then = "nothing is enqueued by schedule until `celery ha-beat resume`"
                return logging.WARNING, f"The cluster is paused since {_instant(since)} by {by} ({why}): {then}"
            case e.Resumed(by, after):
                return logging.WARNING, f"The cluster is resumed by {by} after {_seconds(after)}"
            case e.RequestAnswered(action, by, ok, line):
                return logging.INFO if ok else logging.WARNING, f"Asked by {by} to {action.replace('_', ' ')}: {line}"
            case e.EnqueuedOnRequest(entry, task, task_id, scheduled_at, kind, by):
                return (
                    logging.INFO,
                    f"Enqueued {entry} ({task}[{task_id}]) of {_instant(scheduled_at)} ({kind}) for {by}",
                )
            case e.InvariantBroken(kind, subject, detail):
                return logging.ERROR, f"An invariant is broken ({kind}, {subject}): {detail}"
            case e.ScheduleStoreFailed(why, known):
                then = "going on with the schedule as last read" if known else "not leading before it was read"
                return logging.WARNING, f"The schedule's database can't be used ({why}): {then}"
            case e.ScheduleStoreBack(after):
                return logging.INFO, f"The schedule's database can be used again after {_seconds(after)}"
            case _:
                return logging.DEBUG, ""


def _instant(at: datetime) -> str:
    """In UTC, as the command line shows it."""
    at = at.astimezone(UTC)
    part = f".{at.microsecond // 1000:03d}" if at.microsecond else ""
    return f"{at:%Y-%m-%d %H:%M:%S}{part}Z"


def _occurrences(count: int) -> str:
    return "1 occurrence" if count == 1 else f"{count} occurrences"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
