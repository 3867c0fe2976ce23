"""Codes for reasons, kinds and outcomes.

Events, metrics, the journal, the lease record and the tests use these values. :mod:`ha_beat.monitoring.wording` and
:mod:`ha_beat.monitoring.request_wording` have a sentence for each. A comment here adds only what that sentence leaves
out. A value never changes its meaning; new values may be added.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

_E = TypeVar("_E", bound=StrEnum)


def parse_code(kind: type[_E], value: str) -> _E | None:
    """Return the member with this value, or ``None`` for an unknown one, such as a newer version's."""
    try:
        return kind(value)
    except ValueError:
        return None


# --- Election


class TermStart(StrEnum):
    """Why the lease was free when a term began."""

    NO_LEASE = "no_lease"
    RELEASED = "released"
    OWN_LEASE = "own_lease"
    LEADER_GONE = "leader_gone"
    EXPIRED = "expired"


class TermEnd(StrEnum):
    """Why a term ended."""

    SHUTDOWN = "shutdown"
    STEP_DOWN = "step_down"
    STALLED = "stalled"
    TRUST_EXPIRED = "trust_expired"
    #: The lease record named another holder or epoch, or was released by another replica.
    SUPERSEDED = "superseded"
    STATE_LOSS = "state_loss"
    SERVER_CHANGED = "server_changed"
    BROKER_UNREACHABLE = "broker_unreachable"
    SCHEDULER_FAILED = "scheduler_failed"
    REPLICA_EXHAUSTED = "replica_exhausted"
    ELECTION_FAILED = "election_failed"
    FORBIDDEN = "forbidden"


class ForbiddenReason(StrEnum):
    """Why a replica must not lead its cluster."""

    OTHER_APP = "other_app"
    NEWER_SCHEMA = "newer_schema"
    #: The broker's Redis names another lease store than this replica's.
    OTHER_STORE = "other_store"


class CampaignRefusal(StrEnum):
    """Why Redis refused a campaign."""

    MOVED = "moved"
    HOLDER_PRESENT = "holder_present"


class LeaseAction(StrEnum):
    """Operation of the election on the lease."""

    CAMPAIGN = "campaign"
    RENEWAL = "renewal"


class LeaseOutcome(StrEnum):
    """Outcome of a campaign or a renewal."""

    WON = "won"
    REFUSED = "refused"
    FORBIDDEN = "forbidden"
    RENEWED = "renewed"
    LOST = "lost"
    #: A later attempt had already moved the lease.
    LATE = "late"
    #: No answer came.
    UNKNOWN = "unknown"


# --- Schedule: entries, occurrences and their verdicts


class SkipReason(StrEnum):
    """Why an occurrence was skipped."""

    COALESCED = "coalesced"
    MISSED = "missed"
    MISFIRE_GRACE = "misfire_grace"
    MISFIRE_LIMIT = "misfire_limit"
    STATE_LOSS = "state_loss"
    EDITED = "edited"
    EXPIRED = "expired"
    OVERLAP = "overlap"
    PAUSED = "paused"
    REMOVED = "removed"
    NO_MESSAGE = "no_message"
    DECLINED = "declined"
    NOT_PUBLISHED = "not_published"


class Verdict(StrEnum):
    """What an entry's ledger row records last: the state of its newest occurrence, or of the entry itself."""

    #: The entry has a position, and no occurrence since.
    ARMED = "armed"
    #: A message is about to be sent, or its outcome is not recorded yet.
    CLAIMED = "claimed"
    ENQUEUED = "enqueued"
    SKIPPED = "skipped"
    #: It stays unknown whether the broker has the message.
    UNCERTAIN = "uncertain"
    #: The entry was deleted or disabled.
    ABSENT = "absent"


class MisfirePolicy(StrEnum):
    """Which overdue occurrences of an entry are enqueued."""

    #: The newest one.
    ONCE = "once"
    #: None.
    SKIP = "skip"
    #: All, up to ``misfire_limit``.
    ALL = "all"


class OverlapPolicy(StrEnum):
    """Whether an occurrence is enqueued while the last message of its entry has not ended."""

    ALLOW = "allow"
    SKIP = "skip"


class EntryFault(StrEnum):
    """Why one entry failed. The other entries are not affected."""

    INVALID = "invalid"
    DUPLICATE_ID = "duplicate_id"
    SCHEDULE_RAISES = "schedule_raises"
    AHEAD_OF_CLOCK = "ahead_of_clock"
    MESSAGE_NOT_BUILT = "message_not_built"
    SLOW_ARGUMENTS = "slow_arguments"
    HUNG_ARGUMENTS = "hung_arguments"
    NOT_SUBMITTED = "not_submitted"
    REFUSED = "refused"
    PARTIAL = "partial"
    ROW_UNREADABLE = "row_unreadable"
    ROW_CHANGED = "row_changed"
    #: It waits for the end of its last message, and no worker has reported an end for its `overlap_timeout`.
    NO_REPORTS = "no_reports"
    CALLBACK_RAISES = "callback_raises"
    #: The schedule's database refused its run state, or another transaction has locked the row.
    ROW_NOT_WRITTEN = "row_not_written"


class BuildFault(StrEnum):
    """Why a message could not be built, if the entry itself is at fault."""

    #: The message cannot be encoded. Another attempt would fail too.
    MESSAGE = "message"
    #: The project's code raised. Another attempt may succeed.
    TASK = "task"
    #: The broker refuses only this message, for example because of its queue's permissions.
    DESTINATION = "destination"


class LossKind(StrEnum):
    """How Redis lost state."""

    LEDGER_LOST = "ledger_lost"
    LEASE_AND_LEDGER_LOST = "lease_and_ledger_lost"
    LEDGER_BEHIND = "ledger_behind"
    RESTARTED_BEHIND = "restarted_behind"
    RESTARTED_WITHOUT_AOF = "restarted_without_aof"
    RESTARTED = "restarted"
    FAILED_OVER_BEHIND = "failed_over_behind"
    FAILED_OVER_UNKNOWN = "failed_over_unknown"
    FAILED_OVER = "failed_over"
    UNFINISHED = "unfinished"
    UNFINISHED_UNREADABLE = "unfinished_unreadable"


# --- Dispatch


class AnswerKind(StrEnum):
    """Outcome of one dispatch operation."""

    DONE = "done"
    #: It was done before.
    MINE = "mine"
    #: Nothing was done, because the row is not the expected one.
    MOVED = "moved"
    #: Nothing was done: Redis or the broker refused the message.
    ERROR = "error"
    #: The message was not sent, because the broker was out of reach or the term ended.
    UNSENT = "unsent"
    #: Some of the message's queues have it.
    PARTIAL = "partial"
    #: Nothing was done, because the time of the batch was spent.
    DEFERRED = "deferred"
    #: Nothing was done, because the cluster is paused; with the detail ``entry``, because the entry is.
    PAUSED = "paused"
    #: Nothing was done, because a message keeps the entry busy.
    OVERLAP = "overlap"
    #: Nothing was done, because the request no longer waits.
    WITHDRAWN = "withdrawn"
    #: The outcome is unknown, and was recorded as such.
    UNCERTAIN = "uncertain"
    #: The outcome is unknown, and the message is to be sent again.
    AGAIN = "again"
    #: The entry's task published nothing.
    DECLINED = "declined"


class DispatchPath(StrEnum):
    """How messages reach the broker."""

    ATOMIC = "atomic"
    CLAIM = "claim"


class PathReason(StrEnum):
    """Why a dispatch path was chosen."""

    BROKER_HOLDS_LEASE = "broker_holds_lease"
    BROKER_NOT_REDIS = "broker_not_redis"
    BROKER_ON_OTHER_REDIS = "broker_on_other_redis"


class PublishOutcome(StrEnum):
    """Outcome of publishing one message."""

    ACCEPTED = "accepted"
    #: The broker certainly does not have the message.
    REFUSED = "refused"
    #: Publishing was not tried, or failed before anything was written.
    UNSENT = "unsent"
    UNKNOWN = "unknown"


class UncertainReason(StrEnum):
    """Why the delivery of a message is unknown."""

    NO_ANSWER = "no_answer"
    INTERRUPTED = "interrupted"
    #: An earlier leader left the claim open, or the publish deadline has passed.
    UNCONFIRMED = "unconfirmed"


class UncertainPolicy(StrEnum):
    """How a message of unknown outcome is treated."""

    SKIP = "skip"
    REPUBLISH = "republish"


# --- Requests to the leader


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
    NO_PAST_INSTANTS = "no_past_instants"
    TOO_MANY_INSTANTS = "too_many_instants"
    #: Some instants were refused, or would be.
    BACKFILL_INCOMPLETE = "backfill_incomplete"
    NOT_SENT = "not_sent"
    UNCERTAIN = "uncertain"
    WITHDRAWN = "withdrawn"
    INVALID_ARGUMENT = "invalid_argument"
    UNKNOWN_REQUEST = "unknown_request"
    ENDED_TERMS = "ended_terms"
    FAILED = "failed"
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
    """Outcome of a backfill for one due instant."""

    PLANNED = "planned"
    ENQUEUED = "enqueued"
    ENQUEUED_EARLIER = "enqueued_earlier"
    ALREADY_ENQUEUED = "already_enqueued"
    NOT_REACHED = "not_reached"
    OUTCOME_UNKNOWN = "outcome_unknown"
    NOT_IN_JOURNAL = "not_in_journal"
    BEGUN_EARLIER = "begun_earlier"
    UNCERTAIN = "uncertain"
    WITHDRAWN = "withdrawn"
    DECLINED = "declined"
    NOT_SENT = "not_sent"


class MessageKind(StrEnum):
    """Message that is enqueued on request."""

    MANUAL = "manual"
    BACKFILL = "backfill"


# --- Health, status and checks


class HealthReason(StrEnum):
    """Why a replica is not live or not ready."""

    STALLED = "stalled"
    ELECTION_STOPPED = "election_stopped"
    SCHEDULER_FAILED = "scheduler_failed"
    REDIS_UNREACHABLE = "redis_unreachable"
    FORBIDDEN = "forbidden"
    OTHER_APP = "other_app"
    SCHEDULE_UNREAD = "schedule_unread"
    BROKER_UNREACHABLE = "broker_unreachable"
    NOT_TAKEN_UP = "not_taken_up"


class Duty(StrEnum):
    """Work that a replica must do again and again."""

    #: Reach the lease in Redis: observe it as a standby, renew it as the leader.
    LEASE = "lease"
    PRESENCE = "presence"
    #: Keep the shadow of the ledger up to date from the journal.
    FOLLOW_JOURNAL = "follow_journal"
    MARK_LEASE = "mark_lease"
    READ_SCHEDULE = "read_schedule"
    WRITE_ROWS = "write_rows"
    REACH_BROKER = "reach_broker"
    #: Load the schedule and the ledger as the leader, before anything is enqueued.
    TAKE_UP = "take_up"
    MAIN_LOOP = "main_loop"
    POLL_CLUSTER = "poll_cluster"
    SERVE_HTTP = "serve_http"
    WRITE_LOG = "write_log"
    SEND_SIGNALS = "send_signals"
    #: Open the connection that releases the lease in a signal handler. Done at the start of a term.
    PREPARE_RELEASE = "prepare_release"


class DutyFault(StrEnum):
    """Why a duty is late."""

    #: It was not done in time, although no attempt failed: it hangs, or its thread has stopped.
    OVERDUE = "overdue"
    UNREACHABLE = "unreachable"
    #: The server answers with an error.
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    PARTIAL = "partial"
    FAILED = "failed"


class RedisRisk(StrEnum):
    """Configuration with which Redis may lose the lease and the ledger."""

    EVICTION = "eviction"
    NO_APPEND_ONLY_FILE = "no_append_only_file"
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
