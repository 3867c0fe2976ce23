"""Ledger rows and journal records of an occurrence that is claimed, uncertain or not sent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ha_beat.reasons import SkipReason, UncertainReason, Verdict
from ha_beat.store.ledger import LedgerRow

#: Characters of a detail that are kept in the ledger and the journal.
_MAX_DETAIL = 300

#: Verdict of a row, as stored.
_ENQUEUED, _CLAIMED = (f'"verdict":"{verdict}"' for verdict in (Verdict.ENQUEUED, Verdict.CLAIMED))


def claimed_row(row: str) -> str:
    """Return the row of an enqueued occurrence with the verdict ``claimed``, both as stored.

    Raises:
        ValueError: the row has another verdict.
    """
    # As text, which takes a tenth of the time. The quotes inside a stored text are escaped.
    if _ENQUEUED not in row:
        raise ValueError("the row of a message is not that of an enqueued occurrence")
    return row.replace(_ENQUEUED, _CLAIMED, 1)


def uncertain_row(
    claimed: str, reason: UncertainReason = UncertainReason.UNCONFIRMED, detail: str = ""
) -> LedgerRow | None:
    """Return a claimed row with the verdict ``uncertain``; every replica computes the same.

    ``None`` for no row, or an unreadable one.
    """
    row = LedgerRow.parse(claimed) if claimed else None
    if row is None:
        return None
    return replace(row, verdict=Verdict.UNCERTAIN, reason=reason, detail=detail[:_MAX_DETAIL]).with_raw()


def raw(row: LedgerRow | None) -> str:
    return row.raw if row is not None else ""


def uncertain_record(record: str, reason: UncertainReason = UncertainReason.UNCONFIRMED, detail: str = "") -> str:
    """Return the record of an enqueued occurrence as one of unknown outcome, and any other record unchanged."""
    fields = _enqueued_fields(record)
    if fields is None:
        return record
    more = {"detail": detail[:_MAX_DETAIL]} if detail else {}
    return json.dumps({**fields, "verdict": Verdict.UNCERTAIN, "why": reason, **more})


def skipped_record(record: str) -> str:
    """Return the record of an enqueued occurrence as one that was not sent, and any other record unchanged."""
    fields = _enqueued_fields(record)
    if fields is None:
        return record
    fields.pop("id", None)
    return json.dumps({**fields, "verdict": Verdict.SKIPPED, "why": SkipReason.NOT_PUBLISHED})


def _enqueued_fields(record: str) -> dict[str, Any] | None:
    fields: dict[str, Any] = json.loads(record)
    return fields if fields.get("verdict") == Verdict.ENQUEUED else None
