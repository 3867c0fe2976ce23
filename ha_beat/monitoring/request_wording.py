"""Wording of answers to requests, of the lease and of pauses, for the log, the CLI and Django."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ha_beat.monitoring.wording import entries_text, phrase
from ha_beat.reasons import BackfillOutcome, ReplyCode
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.lease import LeaseRecord
from ha_beat.suggest import did_you_mean

#: Sentences by code, filled in from the answer's data.
_SENTENCES = {
    ReplyCode.STEPPING_DOWN: "{replica} steps down",
    ReplyCode.PAUSED: "the cluster is paused: nothing is enqueued by schedule",
    ReplyCode.RESUMED: "the cluster is resumed",
    ReplyCode.ENTRY_PAUSED: "{name} is paused: its occurrences are skipped",
    ReplyCode.ENTRY_RESUMED: "{name} is resumed",
    ReplyCode.SENT: "enqueued {entry} as {task}[{task_id}]",
    ReplyCode.SENT_EARLIER: "an earlier leader sent {entry} as {task_id}; `history` shows the outcome",
    ReplyCode.ENTRIES: "",
    ReplyCode.REPORT: "",
    ReplyCode.ALREADY_LEADER: "{replica} is the leader already",
    ReplyCode.NOT_PAUSED: "the cluster is not paused",
    ReplyCode.ENTRY_NOT_PAUSED: "{name} is not paused",
    ReplyCode.NO_PAST_INSTANTS: "{entry} has a custom schedule class, whose past instants cannot be computed",
    ReplyCode.TOO_MANY_INSTANTS: "the period has more than {limit} instants: choose a shorter one",
    ReplyCode.NOT_SENT: "the message was not enqueued: {detail}",
    ReplyCode.UNCERTAIN: "it is unknown whether the broker accepted the message",
    ReplyCode.WITHDRAWN: "the message was not enqueued: the request was withdrawn",
    ReplyCode.INVALID_ARGUMENT: "the request has no valid argument {argument}",
    ReplyCode.UNKNOWN_REQUEST: "the leader's version of ha_beat does not support this request",
    ReplyCode.ENDED_TERMS: "{terms} leaders lost the lease while they carried out the request: it is not tried again",
    ReplyCode.FAILED: "the request failed: {detail}",
    ReplyCode.UNREADABLE: "this version of ha_beat cannot read the leader's answer",
}

_STATES = {
    BackfillOutcome.PLANNED: ("would enqueue", ""),
    BackfillOutcome.ENQUEUED: ("enqueued", ""),
    BackfillOutcome.ENQUEUED_EARLIER: ("enqueued", "by this request, under an earlier leader"),
    BackfillOutcome.ALREADY_ENQUEUED: ("refused", "already enqueued"),
    BackfillOutcome.NOT_REACHED: ("refused", "the schedule has not reached it yet"),
    BackfillOutcome.OUTCOME_UNKNOWN: ("needs force", "it is unknown whether it was enqueued"),
    BackfillOutcome.NOT_IN_JOURNAL: ("needs force", "the journal has no record of it"),
    BackfillOutcome.BEGUN_EARLIER: ("uncertain", "an earlier leader began to send it"),
    BackfillOutcome.UNCERTAIN: ("uncertain", "it is unknown whether the broker accepted the message"),
    BackfillOutcome.WITHDRAWN: ("failed", "the request was withdrawn"),
    BackfillOutcome.DECLINED: ("skipped", "its task published nothing"),
    BackfillOutcome.NOT_SENT: ("failed", "not enqueued"),
}


def reply_text(code: ReplyCode, data: Mapping[str, Any]) -> str:
    """Return one line about an answer, without a full stop."""
    match code:
        case ReplyCode.ALREADY_PAUSED:
            return f"the cluster is paused already, {pause_text(Pause.of(data))}"
        case ReplyCode.ENTRY_ALREADY_PAUSED:
            return f"{data.get('name')} is paused already, {pause_text(Pause.of(data))}"
        case ReplyCode.BACKFILLED | ReplyCode.BACKFILL_PLANNED | ReplyCode.BACKFILL_INCOMPLETE:
            return _backfill_text(data)
        case ReplyCode.NO_SUCH_ENTRY if data.get("disabled"):
            return f"entry {data.get('entry')} is disabled: enable it first"
        case ReplyCode.NO_SUCH_ENTRY:
            hint = did_you_mean(data.get("nearest") or ()) or f"; it has {entries_text(data.get('entries', 0))}"
            return f"the leader has no entry {data.get('entry')!r}{hint}"
        case _:
            return _SENTENCES[code].format_map(defaultdict(str, data))


def _backfill_text(data: Mapping[str, Any]) -> str:
    count, total = data.get("count", 0), len(data.get("instants") or ())
    verb = "would enqueue" if data.get("dry_run") else "enqueued"
    refused = f", {total - count} refused" if total > count else ""
    return f"{verb} {count} of {total} instants of {data.get('entry')}{refused}"


def instant_text(instant: Mapping[str, Any]) -> tuple[str, str]:
    """Return the state of one instant of a backfill, and the reason for it."""
    state, why = _STATES[BackfillOutcome(instant["outcome"])]
    detail = str(instant.get("detail") or "")
    return state, f"{why}: {detail}" if detail else why


def why_free(lease: LeaseRecord) -> str:
    """Return why the holder of the lease does not lead."""
    if not lease.held:
        return f"{lease.holder} released the lease ({phrase(lease.reason, lease.detail)})"
    return f"{lease.holder} holds the lease and does not renew it"


def pause_text(pause: Pause) -> str:
    """Return since when the cluster or an entry is paused, by whom and why."""
    if not pause.since_ms:
        return "by a record that cannot be read"
    by = f" by {pause.by}" if pause.by else ""
    return f"since {pause.since:%Y-%m-%d %H:%M:%S} UTC{by}" + (f": {pause.reason}" if pause.reason else "")
