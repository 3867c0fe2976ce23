"""The wording of codes, for logs, the command line, the page and the admin."""

from __future__ import annotations

from collections.abc import Mapping

from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.journal import TermRecord

_TERM_STARTS: Mapping[TermStart, str] = {
    TermStart.NO_LEASE: "there was no lease",
    TermStart.RELEASED: "the lease was released",
    TermStart.OWN_LEASE: "the lease still named this replica, which had lost it",
    TermStart.LEADER_GONE: "the leader's process is gone or cut off",
    TermStart.EXPIRED: "the lease was not renewed in time",
}

_TERM_ENDS: Mapping[TermEnd, str] = {
    TermEnd.SHUTDOWN: "shutdown",
    TermEnd.STEP_DOWN: "step-down on request",
    TermEnd.STALLED: "the main loop stalled",
    TermEnd.TRUST_EXPIRED: "no renewal of the lease was confirmed in time (the trust window expired)",
    TermEnd.SUPERSEDED: "another term began, or the lease was released",
    TermEnd.STATE_LOSS: "Redis lost the lease or the ledger",
    TermEnd.SERVER_CHANGED: "another Redis server answers",
    TermEnd.BROKER_UNREACHABLE: "the broker is unreachable",
    TermEnd.SCHEDULER_FAILED: "the scheduler fails",
    TermEnd.ELECTION_FAILED: "the election failed",
    TermEnd.FORBIDDEN: "this replica may not lead",
}


def term_start_in_words(reason: TermStart) -> str:
    """Return why a term began."""
    return _TERM_STARTS[reason]


def term_end_in_words(reason: TermEnd | None, detail: str = "") -> str:
    """Return why a term ended, with who asked or which error it was."""
    if reason is None:
        return "unknown reason"
    if not detail:
        return _TERM_ENDS[reason]
    return f"{_TERM_ENDS[reason]} by {detail}" if reason is TermEnd.STEP_DOWN else f"{_TERM_ENDS[reason]}: {detail}"


def term_record_in_words(record: TermRecord) -> str:
    """Return why the term of a journal record began or ended."""
    if isinstance(record.reason, TermStart):
        return term_start_in_words(record.reason)
    return term_end_in_words(record.reason, record.detail)
