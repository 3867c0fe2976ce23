"""Words for codes and values, used by the log, the command line, the status page and the admin.

Nothing may depend on these texts: tests, metrics and records use the codes of :mod:`ha_beat.reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

from ha_beat.reasons import (
    AnswerKind,
    CampaignRefusal,
    DispatchPath,
    Duty,
    DutyFault,
    EntryFault,
    ForbiddenReason,
    HealthReason,
    Invariant,
    LossKind,
    MessageKind,
    PathReason,
    PublishOutcome,
    RedisRisk,
    RequestKind,
    SkipReason,
    TermEnd,
    TermStart,
    UncertainReason,
    Verdict,
)

# One dictionary per enum, because members of two enums that have the same value are equal.
_PHRASES: Mapping[type[StrEnum], Mapping[str, str]] = {
    TermStart: {
        TermStart.NO_LEASE: "there was no lease",
        TermStart.RELEASED: "the previous leader released the lease",
        TermStart.OWN_LEASE: "the lease still named the same replica, which had lost its term",
        TermStart.LEADER_GONE: "the leader's process ended or lost its connection",
        TermStart.EXPIRED: "the leader did not renew the lease in time",
    },
    TermEnd: {
        TermEnd.SHUTDOWN: "the replica was stopped",
        TermEnd.STEP_DOWN: "a step-down was requested",
        TermEnd.STALLED: "the main loop stalled",
        TermEnd.TRUST_EXPIRED: "no renewal of the lease was confirmed in time",
        TermEnd.SUPERSEDED: "another replica took the lease",
        TermEnd.STATE_LOSS: "Redis lost the lease or the ledger",
        TermEnd.SERVER_CHANGED: "another Redis server answers",
        TermEnd.BROKER_UNREACHABLE: "the broker is unreachable",
        TermEnd.SCHEDULER_FAILED: "the scheduler failed",
        TermEnd.REPLICA_EXHAUSTED: "the process lacks memory or file descriptors",
        TermEnd.ELECTION_FAILED: "the election failed",
        TermEnd.FORBIDDEN: "the replica must not lead the cluster",
    },
    ForbiddenReason: {
        ForbiddenReason.OTHER_APP: "another app uses its cluster name",
        ForbiddenReason.NEWER_SCHEMA: "a newer version of ha_beat wrote the records",
        ForbiddenReason.OTHER_STORE: "other replicas keep the lease in another store",
    },
    CampaignRefusal: {
        CampaignRefusal.MOVED: "the lease has changed",
        CampaignRefusal.HOLDER_PRESENT: "the leader is present",
    },
    SkipReason: {
        SkipReason.COALESCED: "overdue; only the newest overdue occurrence runs",
        SkipReason.MISSED: "overdue, and misfire is 'skip'",
        SkipReason.MISFIRE_GRACE: "overdue for longer than misfire_grace",
        SkipReason.MISFIRE_LIMIT: "more occurrences are overdue than misfire_limit",
        SkipReason.STATE_LOSS: "Redis lost its data, and the occurrence may have been enqueued",
        SkipReason.EDITED: "due by the entry's old schedule while there was no leader",
        SkipReason.EXPIRED: "the entry expired before it could be enqueued",
        SkipReason.OVERLAP: "its last message has not ended",
        SkipReason.PAUSED: "the entry is paused",
        SkipReason.REMOVED: "the entry was disabled or deleted before it could be enqueued",
        SkipReason.NO_MESSAGE: "its message could not be built",
        SkipReason.DECLINED: "its task published nothing",
        SkipReason.NOT_PUBLISHED: "the broker did not accept it within publish_deadline",
    },
    EntryFault: {
        EntryFault.INVALID: "it or its options can't be read, so it is left out",
        EntryFault.DUPLICATE_ID: "another entry has the same id, so it is left out",
        EntryFault.SCHEDULE_RAISES: "its schedule raises an exception",
        EntryFault.AHEAD_OF_CLOCK: "its last run is in the future, so it stays idle until then to avoid duplicates",
        EntryFault.MESSAGE_NOT_BUILT: "its message could not be built",
        EntryFault.SLOW_ARGUMENTS: "its arguments take long to compute, so a thread does it from now on",
        EntryFault.HUNG_ARGUMENTS: "its arguments have not been computed within a minute",
        EntryFault.NOT_SUBMITTED: "its message could not be submitted",
        EntryFault.REFUSED: "its message was refused",
        EntryFault.PARTIAL: "some of its queues did not accept the message",
        EntryFault.ROW_UNREADABLE: "its ledger row can't be read by this version, so it is left alone",
        EntryFault.ROW_CHANGED: "another program changed its ledger row, and the change is applied",
        EntryFault.NO_REPORTS: "it waits for its last message to end, and no worker reports ends: load ha_beat.guard",
        EntryFault.CALLBACK_RAISES: "a callback of the scheduler class raised an exception",
        EntryFault.ROW_NOT_WRITTEN: "its run state can't be written to its row",
    },
    LossKind: {
        LossKind.LEDGER_LOST: "the ledger was lost",
        LossKind.LEASE_AND_LEDGER_LOST: "the lease and the ledger were lost",
        LossKind.LEDGER_BEHIND: "the ledger is older than acknowledged writes",
        LossKind.RESTARTED_BEHIND: "Redis restarted without its last writes",
        LossKind.RESTARTED_WITHOUT_AOF: "Redis restarted without an append-only file, so its last writes are lost",
        LossKind.RESTARTED: "Redis restarted, and writes in flight may be lost",
        LossKind.FAILED_OVER_BEHIND: "the new primary lacks the last writes",
        LossKind.FAILED_OVER_UNKNOWN: "Redis failed over, and nothing shows that no writes were lost",
        LossKind.FAILED_OVER: "Redis failed over, and writes in flight may be lost",
        LossKind.UNFINISHED: "an earlier leader did not finish the recovery",
        LossKind.UNFINISHED_UNREADABLE: "an earlier leader's note on the loss can't be read",
    },
    Verdict: {
        Verdict.ARMED: "waiting for its next run",
        Verdict.CLAIMED: "being published",
        Verdict.ENQUEUED: "enqueued",
        Verdict.SKIPPED: "skipped",
        Verdict.UNCERTAIN: "delivery unknown",
        Verdict.ABSENT: "deleted or disabled",
    },
    AnswerKind: {
        AnswerKind.DONE: "done",
        AnswerKind.MINE: "done by an earlier attempt, whose reply was lost",
        AnswerKind.MOVED: "the ledger row has changed",
        AnswerKind.ERROR: "failed",
        AnswerKind.UNSENT: "not sent, because the broker is unreachable",
        AnswerKind.PARTIAL: "sent, but not every queue accepted the message",
        AnswerKind.DEFERRED: "not done yet, for lack of time",
        AnswerKind.PAUSED: "not done, because the cluster or the entry is paused",
        AnswerKind.OVERLAP: "not done, because the last message has not ended",
        AnswerKind.WITHDRAWN: "not done, because the request was withdrawn",
        AnswerKind.UNCERTAIN: "delivery unknown",
        AnswerKind.AGAIN: "delivery unknown; to be sent again",
        AnswerKind.DECLINED: "not done, because the task published nothing",
    },
    DispatchPath: {
        DispatchPath.ATOMIC: "enqueue and record in one Redis script",
        DispatchPath.CLAIM: "claim in Redis, publish to the broker, confirm in Redis",
    },
    PathReason: {
        PathReason.BROKER_HOLDS_LEASE: "the broker is the Redis that holds the lease",
        PathReason.BROKER_NOT_REDIS: "the broker is not Redis",
        PathReason.BROKER_ON_OTHER_REDIS: "the broker is another Redis server or database than the lease's",
    },
    PublishOutcome: {
        PublishOutcome.ACCEPTED: "accepted by the broker",
        PublishOutcome.REFUSED: "refused by the broker",
        PublishOutcome.UNSENT: "not sent",
        PublishOutcome.UNKNOWN: "delivery unknown",
    },
    UncertainReason: {
        UncertainReason.NO_ANSWER: "the broker did not answer",
        UncertainReason.INTERRUPTED: "the publish was interrupted",
        UncertainReason.UNCONFIRMED: "no leader confirmed the publish",
    },
    RequestKind: {
        RequestKind.STEP_DOWN: "step down",
        RequestKind.PAUSE: "pause the cluster",
        RequestKind.RESUME: "resume the cluster",
        RequestKind.PAUSE_ENTRY: "pause an entry",
        RequestKind.RESUME_ENTRY: "resume an entry",
        RequestKind.RUN: "run an entry",
        RequestKind.BACKFILL: "backfill an entry",
        RequestKind.NEXT: "list the next occurrences",
        RequestKind.REPORT: "report its state",
        RequestKind.UNKNOWN: "do something unknown to this version",
    },
    MessageKind: {MessageKind.MANUAL: "manual run", MessageKind.BACKFILL: "backfill"},
    HealthReason: {
        HealthReason.STALLED: "the main loop makes no progress",
        HealthReason.ELECTION_STOPPED: "the election thread is not running",
        HealthReason.SCHEDULER_FAILED: "the scheduler's last turn failed",
        HealthReason.REDIS_UNREACHABLE: "Redis is unreachable",
        HealthReason.FORBIDDEN: "the replica must not lead the cluster",
        HealthReason.OTHER_APP: "the leader runs another app",
        HealthReason.SCHEDULE_UNREAD: "the schedule can't be read",
        HealthReason.BROKER_UNREACHABLE: "the broker can't be reached",
        HealthReason.NOT_TAKEN_UP: "it leads, but has not loaded the schedule",
    },
    Duty: {
        Duty.LEASE: "reaching the lease in Redis",
        Duty.PRESENCE: "keeping the presence connection to Redis",
        Duty.FOLLOW_JOURNAL: "following the journal as a standby",
        Duty.MARK_LEASE: "writing the lease marker to the broker's Redis",
        Duty.READ_SCHEDULE: "reading the schedule's database",
        Duty.WRITE_ROWS: "writing run state to the schedule's database",
        Duty.REACH_BROKER: "reaching the broker",
        Duty.TAKE_UP: "loading the schedule as the leader",
        Duty.MAIN_LOOP: "running the main loop",
        Duty.POLL_CLUSTER: "registering as a member and reading the cluster's state",
        Duty.SERVE_HTTP: "serving HTTP",
        Duty.WRITE_LOG: "writing the log",
        Duty.SEND_SIGNALS: "calling the handlers of signals",
        Duty.PREPARE_RELEASE: "keeping a connection ready for the release of the lease",
    },
    DutyFault: {
        DutyFault.OVERDUE: "not done in time, without an error",
        DutyFault.UNREACHABLE: "no answer",
        DutyFault.REFUSED: "refused",
        DutyFault.TIMED_OUT: "not finished in the time allowed",
        DutyFault.PARTIAL: "done in part",
        DutyFault.FAILED: "unexpected error",
    },
    RedisRisk: {
        RedisRisk.EVICTION: "its maxmemory-policy may evict any key (set noeviction)",
        RedisRisk.NO_APPEND_ONLY_FILE: "it has no append-only file, so a restart loses data (set appendonly yes)",
        RedisRisk.NO_MIN_REPLICAS: (
            "it has replicas and accepts writes without them, so a failover can lose writes and repeat messages "
            "(set min-replicas-to-write 1)"
        ),
    },
    Invariant: {
        Invariant.EPOCH_FELL: "the epoch decreased",
        Invariant.LEDGER_BEHIND_JOURNAL: "the ledger is older than the journal",
        Invariant.TWO_VERDICTS: "one occurrence was enqueued twice",
        Invariant.OVERDUE: "an entry is overdue",
    },
}


_EFFECTS: Mapping[Duty, str] = {
    Duty.LEASE: "A leader stops when its trust in the lease expires, and a standby can't take over",
    Duty.PRESENCE: "If this process dies, takeover waits for lease_ttl",
    Duty.FOLLOW_JOURNAL: "If Redis loses its data now, this standby knows less of what was enqueued",
    Duty.MARK_LEASE: "A second lease store would not be noticed",
    Duty.READ_SCHEDULE: "Entries run as last read; a replica that has never read the schedule does not lead",
    Duty.WRITE_ROWS: "The rows show old last runs; the schedule is not affected",
    Duty.REACH_BROKER: "This replica can't enqueue anything",
    Duty.TAKE_UP: "Nothing is enqueued",
    Duty.MAIN_LOOP: "A leader gives up the lease",
    Duty.POLL_CLUSTER: "Status and metrics are out of date, and other replicas do not see this one",
    Duty.SERVE_HTTP: "Probes and metrics do not answer; scheduling continues",
    Duty.WRITE_LOG: "Log lines wait and may be dropped; scheduling continues",
    Duty.SEND_SIGNALS: "A handler hangs: later signals wait and may be dropped; scheduling continues",
    Duty.PREPARE_RELEASE: "A stop of this leader may take longer",
}


def duty_effect(duty: Duty) -> str:
    """Return the effect of this duty being late."""
    return _EFFECTS[duty]


def phrase(code: StrEnum | str | None, detail: str = "") -> str:
    """Return the words for a code, followed by the detail in parentheses if there is one.

    ``None`` stands for an unknown code. A text that is not a code is returned unchanged.
    """
    if code is None:
        words = "unknown reason"
    else:
        words = _PHRASES.get(type(code), {}).get(code, str(code)) if isinstance(code, StrEnum) else code
    return f"{words} ({detail.rstrip('.')})" if detail else words


def phrase_of(kind: type[StrEnum], stored: str, detail: str = "") -> str:
    """Return the words for a code that was read from a record, or the code itself if ``kind`` does not have it."""
    return phrase(_PHRASES.get(kind, {}).get(stored, stored), detail)


def sentence(words: str) -> str:
    """Return the words with a capital first letter."""
    return words[:1].upper() + words[1:]


def health(problems: Mapping[str, str]) -> list[str]:
    """Return why a replica is not live or not ready, from a detail by :class:`HealthReason`."""
    return [phrase_of(HealthReason, reason, detail) for reason, detail in problems.items()]


def instant(at: datetime) -> str:
    """Return the time in UTC, with milliseconds if it has any: ``2026-03-01 03:30:00.250Z``."""
    at = at.astimezone(UTC)
    part = f".{at.microsecond // 1000:03d}" if at.microsecond else ""
    return f"{at:%Y-%m-%d %H:%M:%S}{part}Z"


def duration(seconds: float) -> str:
    """Return a duration with its unit: ``40 ms``, ``2.5 s``, ``3 min``, ``5 h 20 min`` or ``2 d 3 h``."""
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds // 60), 60)
    if hours < 2:
        return f"{60 * hours + minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def occurrences(count: int) -> str:
    """Return the number of occurrences, ``all occurrences`` if they were too many to count (-1)."""
    if count < 0:
        return "all occurrences"
    return "1 occurrence" if count == 1 else f"{count} occurrences"


def entries_text(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def due(first: datetime, until: datetime, count: int) -> str:
    """Return the due time of one occurrence, or the range of several."""
    if count == 1:
        return f"due {instant(first)}"
    return f"{occurrences(count)} due from {instant(first)} until {instant(until)}"
