"""Codes of requests to the leader, of the health of replicas, and of warnings about the cluster."""

from __future__ import annotations

from enum import StrEnum


class RequestKind(StrEnum):
    """Kind of a request to the leader."""

    STEP_DOWN = "step_down"
    PAUSE = "pause"
    RESUME = "resume"
    PAUSE_ENTRY = "pause_entry"
    RESUME_ENTRY = "resume_entry"
    RUN = "run"
    BACKFILL = "backfill"
    NEXT = "next"
    REPORT = "report"
    #: A kind that this version does not know, or a request that it cannot read.
    UNKNOWN = "unknown"


class ReplyCode(StrEnum):
    """Answer of the leader to a request."""

    STEPPING_DOWN = "stepping_down"
    PAUSED = "paused"
    RESUMED = "resumed"
    ENTRY_PAUSED = "entry_paused"
    ENTRY_RESUMED = "entry_resumed"
    SENT = "sent"
    #: An earlier leader had sent the message, and ended before it answered.
    SENT_EARLIER = "sent_earlier"
    BACKFILLED = "backfilled"
    #: A dry run in which every instant may be enqueued.
    BACKFILL_PLANNED = "backfill_planned"
    #: The upcoming entries.
    ENTRIES = "entries"
    REPORT = "report"

    ALREADY_LEADER = "already_leader"
    ALREADY_PAUSED = "already_paused"
    NOT_PAUSED = "not_paused"
    ENTRY_ALREADY_PAUSED = "entry_already_paused"
    ENTRY_NOT_PAUSED = "entry_not_paused"
    NO_SUCH_ENTRY = "no_such_entry"
    #: The past instants of the entry's schedule class cannot be computed.
    NO_PAST_INSTANTS = "no_past_instants"
    TOO_MANY_INSTANTS = "too_many_instants"
    #: Some instants were refused, or would be.
    BACKFILL_INCOMPLETE = "backfill_incomplete"
    #: The message was not sent.
    NOT_SENT = "not_sent"
    #: The delivery of the message is unknown.
    UNCERTAIN = "uncertain"
    #: The request was withdrawn before its message was sent.
    WITHDRAWN = "withdrawn"
    INVALID_ARGUMENT = "invalid_argument"
    #: The leader's version does not know this kind of request.
    UNKNOWN_REQUEST = "unknown_request"
    #: Several terms ended while their leaders carried out the request. It is not tried again.
    ENDED_TERMS = "ended_terms"
    #: The handler raised an exception.
    FAILED = "failed"
    #: This version cannot read the answer.
    UNREADABLE = "unreadable"

    @property
    def ok(self) -> bool:
        """True if the request was carried out."""
        return self in _CARRIED_OUT


_CARRIED_OUT = frozenset(
    {
        ReplyCode.STEPPING_DOWN,
        ReplyCode.PAUSED,
        ReplyCode.RESUMED,
        ReplyCode.ENTRY_PAUSED,
        ReplyCode.ENTRY_RESUMED,
        ReplyCode.SENT,
        ReplyCode.SENT_EARLIER,
        ReplyCode.BACKFILLED,
        ReplyCode.BACKFILL_PLANNED,
        ReplyCode.ENTRIES,
        ReplyCode.REPORT,
    }
)


class BackfillOutcome(StrEnum):
    """Outcome of a backfill for one instant."""

    #: It may be enqueued.
    PLANNED = "planned"
    ENQUEUED = "enqueued"
    #: Enqueued by the same request under an earlier leader.
    ENQUEUED_EARLIER = "enqueued_earlier"
    #: Refused: the journal shows that it was enqueued.
    ALREADY_ENQUEUED = "already_enqueued"
    #: Refused: the schedule has not reached it.
    NOT_REACHED = "not_reached"
    #: Needs force: the journal shows that its outcome is unknown.
    OUTCOME_UNKNOWN = "outcome_unknown"
    #: Needs force: the journal has no record of it.
    NOT_IN_JOURNAL = "not_in_journal"
    #: An earlier leader began to send it; the outcome is unknown.
    BEGUN_EARLIER = "begun_earlier"
    #: The delivery of the message is unknown.
    UNCERTAIN = "uncertain"
    #: The request was withdrawn before the message was sent.
    WITHDRAWN = "withdrawn"
    #: The entry's task published nothing.
    DECLINED = "declined"
    NOT_SENT = "not_sent"


class MessageKind(StrEnum):
    """Message that is enqueued on request."""

    MANUAL = "manual"
    BACKFILL = "backfill"


class HealthReason(StrEnum):
    """Why a replica is not live or not ready."""

    STALLED = "stalled"
    ELECTION_STOPPED = "election_stopped"
    SCHEDULER_FAILED = "scheduler_failed"
    REDIS_UNREACHABLE = "redis_unreachable"
    FORBIDDEN = "forbidden"
    OTHER_APP = "other_app"
    #: The schedule was never read, or cannot be read for a while.
    SCHEDULE_UNREAD = "schedule_unread"
    #: The broker was not reached yet, or cannot be reached.
    BROKER_UNREACHABLE = "broker_unreachable"
    #: It leads, and has not loaded schedule and ledger.
    NOT_TAKEN_UP = "not_taken_up"


class Duty(StrEnum):
    """What a replica must do again and again."""

    #: Reach the lease in Redis: observe it as a standby, renew it as the leader.
    LEASE = "lease"
    PRESENCE = "presence"
    #: Keep the shadow of the ledger up to date from the journal.
    FOLLOW_JOURNAL = "follow_journal"
    #: Mark the broker's Redis with the lease store.
    MARK_LEASE = "mark_lease"
    #: Read the schedule from its own store.
    READ_SCHEDULE = "read_schedule"
    #: Write run state to the schedule's own store.
    WRITE_ROWS = "write_rows"
    REACH_BROKER = "reach_broker"
    #: Load schedule and ledger as the leader, so that occurrences can be enqueued.
    TAKE_UP = "take_up"
    MAIN_LOOP = "main_loop"
    #: Register as a member and read the state of the cluster.
    POLL_CLUSTER = "poll_cluster"
    SERVE_HTTP = "serve_http"
    WRITE_LOG = "write_log"
    SEND_SIGNALS = "send_signals"
    #: Connect, at the start of a term, the connection that releases the lease in a signal handler.
    PREPARE_RELEASE = "prepare_release"


class DutyFault(StrEnum):
    """Why a duty is late."""

    #: It was not done in time, and no attempt has failed: it hangs, or its thread has stopped.
    OVERDUE = "overdue"
    #: The server does not answer.
    UNREACHABLE = "unreachable"
    #: The server answers with an error.
    REFUSED = "refused"
    #: The server did not finish within the time that it is given.
    TIMED_OUT = "timed_out"
    #: Part of it could not be done.
    PARTIAL = "partial"
    #: An unexpected exception.
    FAILED = "failed"


class RedisRisk(StrEnum):
    """How Redis' configuration allows it to lose the lease and the ledger."""

    EVICTION = "eviction"
    NO_APPEND_ONLY_FILE = "no_append_only_file"
    #: A partitioned primary accepts writes after a failover.
    NO_MIN_REPLICAS = "no_min_replicas"


class Invariant(StrEnum):
    """Rule that a correct cluster never breaks."""

    EPOCH_FELL = "epoch_fell"
    LEDGER_BEHIND_JOURNAL = "ledger_behind_journal"
    TWO_VERDICTS = "two_verdicts"
    OVERDUE = "overdue"


class WarningCode(StrEnum):
    """Condition that the status, the page and the metrics show until it ends."""

    REDIS_UNREACHABLE = "redis_unreachable"
    EVICTION_POLICY = "eviction_policy"
    PAUSED = "paused"
    ENTRY_PAUSED = "entry_paused"
    NO_LEADER = "no_leader"
    NO_STANDBY = "no_standby"
    NOT_READY = "not_ready"
    CLOCK_OFFSET = "clock_offset"
    OVERDUE = "overdue"
    ENTRY_FAILING = "entry_failing"
    UNCERTAIN = "uncertain"
    SCHEDULE_DRIFT = "schedule_drift"
    VERSION_MIX = "version_mix"
    STATE_LOST = "state_lost"
    INVARIANT_BROKEN = "invariant_broken"
    DUTY_LATE = "duty_late"
    RECORD_UNREADABLE = "record_unreadable"
    #: A problem of the last hour that has no other place in the status.
    INCIDENT = "incident"


class Level(StrEnum):
    """Result of one check of ``ha-beat doctor``."""

    OK = "ok"
    #: Good to know.
    NOTE = "note"
    #: A problem may follow.
    WARN = "warn"
    #: A problem exists.
    FAIL = "fail"
