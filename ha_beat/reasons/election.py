"""Codes of the election: why a term begins and ends, and how campaigns and renewals end."""

from __future__ import annotations

from enum import StrEnum


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
