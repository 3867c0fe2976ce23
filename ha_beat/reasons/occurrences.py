"""Codes of occurrences and of their messages, from the policy of an entry to the answer of the broker."""

from __future__ import annotations

from enum import StrEnum


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
