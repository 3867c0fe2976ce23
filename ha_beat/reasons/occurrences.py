"""Codes for reasons, kinds and outcomes.

Events, metrics, the journal, the lease record and the tests use these values. Where one is
shown in words, the words are in :mod:`ha_beat.monitoring.wording` or, for answers to requests, in
:mod:`ha_beat.monitoring.request_wording`. A value never changes its meaning; new values may be added.
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


class TermStart(StrEnum):
    """Why the lease was free when a term began."""

    NO_LEASE = "no_lease"
    RELEASED = "released"
    #: The record still named this replica, which had lost the term.
    OWN_LEASE = "own_lease"
    #: The leader's presence connection had ended.
    LEADER_GONE = "leader_gone"
    #: The leader had not renewed within its ttl.
    EXPIRED = "expired"


class TermEnd(StrEnum):
    """Why a term ended."""

    SHUTDOWN = "shutdown"
    #: A step-down that was requested through the CLI, Django or the API.
    STEP_DOWN = "step_down"
    #: The main loop made no progress for ``stall_timeout``.
    STALLED = "stalled"
    #: No renewal was confirmed within the trust window.
    TRUST_EXPIRED = "trust_expired"
    #: The lease record named another holder or epoch, or was released by another replica.
    SUPERSEDED = "superseded"
    #: Redis lost the lease or the ledger.
    STATE_LOSS = "state_loss"
    #: Another Redis server answered.
    SERVER_CHANGED = "server_changed"
    BROKER_UNREACHABLE = "broker_unreachable"
    SCHEDULER_FAILED = "scheduler_failed"
    #: The process lacks memory or file descriptors.
    REPLICA_EXHAUSTED = "replica_exhausted"
    ELECTION_FAILED = "election_failed"
    #: Another app, a newer version of this package or another lease store owns the cluster.
    FORBIDDEN = "forbidden"


class ForbiddenReason(StrEnum):
    """Why a replica must not lead its cluster."""

    #: The ledger belongs to another app with the same cluster name.
    OTHER_APP = "other_app"
    #: A newer version of this package wrote the records.
    NEWER_SCHEMA = "newer_schema"
    #: The broker's Redis names another lease store than this replica's.
    OTHER_STORE = "other_store"


class CampaignRefusal(StrEnum):
    """Why Redis refused a campaign."""

    #: The record is not the one that the campaign was based on.
    MOVED = "moved"
    #: The holder's presence connection is there.
    HOLDER_PRESENT = "holder_present"


class LeaseAction(StrEnum):
    """Attempt of the election on the lease."""

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


class SkipReason(StrEnum):
    """Why an occurrence was skipped."""

    #: Overdue, and only the newest overdue instant runs.
    COALESCED = "coalesced"
    #: Overdue, and the misfire policy is ``skip``.
    MISSED = "missed"
    MISFIRE_GRACE = "misfire_grace"
    MISFIRE_LIMIT = "misfire_limit"
    #: Redis lost its data, and the occurrence may have been enqueued.
    STATE_LOSS = "state_loss"
    #: Due by the entry's old schedule while there was no leader.
    EDITED = "edited"
    #: Due before the entry expired, and not enqueued until then.
    EXPIRED = "expired"
    #: The last message of the entry had not ended.
    OVERLAP = "overlap"
    #: Due while the entry was paused.
    PAUSED = "paused"
    #: Due before the entry was disabled or deleted, and not enqueued until then.
    REMOVED = "removed"
    #: The entry's message could not be built until its deadline.
    NO_MESSAGE = "no_message"
    #: The task was applied and published nothing.
    DECLINED = "declined"
    #: The broker did not take the message until its deadline.
    NOT_PUBLISHED = "not_published"


class Verdict(StrEnum):
    """State of an entry's newest occurrence in its ledger row."""

    #: Known to the cluster, not run yet.
    ARMED = "armed"
    #: A message is on its way; the outcome is open.
    CLAIMED = "claimed"
    ENQUEUED = "enqueued"
    SKIPPED = "skipped"
    #: The delivery of the message is unknown.
    UNCERTAIN = "uncertain"
    #: The entry is deleted or disabled.
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

    #: The entry or its options cannot be read.
    INVALID = "invalid"
    #: Another entry has the same id.
    DUPLICATE_ID = "duplicate_id"
    SCHEDULE_RAISES = "schedule_raises"
    #: The entry last ran in the future, because a clock was ahead. It stays idle until then.
    AHEAD_OF_CLOCK = "ahead_of_clock"
    MESSAGE_NOT_BUILT = "message_not_built"
    #: Its arguments take long. From the next time on a thread computes them.
    SLOW_ARGUMENTS = "slow_arguments"
    #: A thread has computed its arguments for a minute and has not finished.
    HUNG_ARGUMENTS = "hung_arguments"
    #: The command that carries its message cannot be built or is not accepted.
    NOT_SUBMITTED = "not_submitted"
    #: The broker refused the message.
    REFUSED = "refused"
    #: Only some of several queues took the message.
    PARTIAL = "partial"
    #: The ledger row has another version or cannot be parsed.
    ROW_UNREADABLE = "row_unreadable"
    #: Another writer changed the ledger row.
    ROW_CHANGED = "row_changed"
    #: It waits for the end of its last message, and no worker has reported any for longer than its `overlap_timeout`.
    NO_REPORTS = "no_reports"
    #: The scheduler class raised when it was notified of an outcome.
    CALLBACK_RAISES = "callback_raises"
    #: The schedule's database refused its run state, or another transaction has locked the row.
    ROW_NOT_WRITTEN = "row_not_written"


class BuildFault(StrEnum):
    """Why a message could not be built, if its own entry is at fault."""

    #: It cannot be encoded. Another attempt would fail too.
    MESSAGE = "message"
    #: The entry's own code raised, perhaps for a moment.
    TASK = "task"
    #: The broker refuses what concerns this message only, such as a key without a right.
    DESTINATION = "destination"


class LossKind(StrEnum):
    """How Redis lost state."""

    LEDGER_LOST = "ledger_lost"
    LEASE_AND_LEDGER_LOST = "lease_and_ledger_lost"
    #: The ledger is older than writes that Redis had acknowledged.
    LEDGER_BEHIND = "ledger_behind"
    #: Redis restarted without its last writes.
    RESTARTED_BEHIND = "restarted_behind"
    #: Redis restarted without an append-only file, so that its last writes are lost.
    RESTARTED_WITHOUT_AOF = "restarted_without_aof"
    #: Redis restarted with its data. Only the writes in flight are in doubt.
    RESTARTED = "restarted"
    #: The new primary lacks the last writes.
    FAILED_OVER_BEHIND = "failed_over_behind"
    #: It is not known whether the new primary has all writes.
    FAILED_OVER_UNKNOWN = "failed_over_unknown"
    #: The new primary has all known writes. Only the writes in flight are in doubt.
    FAILED_OVER = "failed_over"
    #: An earlier leader found a loss and did not finish the recovery.
    UNFINISHED = "unfinished"
    #: Like ``unfinished``, and its note cannot be read.
    UNFINISHED_UNREADABLE = "unfinished_unreadable"


class AnswerKind(StrEnum):
    """Outcome of one dispatch operation."""

    DONE = "done"
    #: An earlier attempt, whose reply was lost, had done it.
    MINE = "mine"
    #: The ledger row is not the expected one.
    MOVED = "moved"
    #: Nothing was done.
    ERROR = "error"
    #: Nothing was done, because the broker is unreachable.
    UNSENT = "unsent"
    #: Recorded, but not each of several queues took the message.
    PARTIAL = "partial"
    #: Nothing was done, because the time for the batch was used up.
    DEFERRED = "deferred"
    #: Nothing was done, because the cluster is paused or, with the detail ``entry``, the entry.
    PAUSED = "paused"
    #: Nothing was done, because the last message of the entry has not ended.
    OVERLAP = "overlap"
    #: Nothing was done, because the request was withdrawn.
    WITHDRAWN = "withdrawn"
    #: Claimed; the outcome of the publish is unknown.
    UNCERTAIN = "uncertain"
    #: Like ``uncertain``, and the message is to be sent again.
    AGAIN = "again"
    #: Nothing was done, because the entry's task published nothing.
    DECLINED = "declined"


class DispatchPath(StrEnum):
    """How messages reach the broker."""

    ATOMIC = "atomic"
    CLAIM = "claim"


class PathReason(StrEnum):
    """Why a dispatch path was chosen."""

    BROKER_HOLDS_LEASE = "broker_holds_lease"
    BROKER_NOT_REDIS = "broker_not_redis"
    #: The broker is another Redis server, or another database, than the lease's.
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

    #: The broker gave no definite answer.
    NO_ANSWER = "no_answer"
    #: The publish was interrupted by an unexpected exception.
    INTERRUPTED = "interrupted"
    #: The claim was left open, by an earlier leader or past the publish deadline.
    UNCONFIRMED = "unconfirmed"


class UncertainPolicy(StrEnum):
    """How a message of unknown outcome is treated."""

    SKIP = "skip"
    REPUBLISH = "republish"


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
