"""Updates of stored claims: what each resolution writes to the claim, the entry's row and the journal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ha_beat.dispatch.claims.claim import Claim, ClaimState, Resolution
from ha_beat.dispatch.claims.rows import raw, skipped_record, uncertain_record, uncertain_row
from ha_beat.dispatch.protocol import OpenClaim
from ha_beat.store.ledger import LedgerRow

#: State of a stored claim whose message was certainly not sent.
UNSENT = "unsent"


@dataclass(frozen=True, slots=True)
class Update:
    """Replacement of one stored claim.

    ``state`` is the claim's new state, empty to remove it. ``row`` replaces the entry's row if that is one of
    ``replaces``; an empty one removes it. ``records`` go to the journal. ``not_sent``: the message was certainly not
    sent, and does not keep its entry busy.
    """

    key: str
    json: str
    state: str
    entry: str
    row: str
    replaces: Sequence[str]
    records: Sequence[str]
    not_sent: bool = False

    def argv(self) -> list[Any]:
        return [
            *(self.key, self.json, self.state, self.entry, self.row, int(self.not_sent)),
            *(len(self.replaces), *self.replaces),
            *(len(self.records), *self.records),
        ]


# --- Claims of this process


def resolving_updates(claims: Iterable[Claim], *, in_term: bool = False) -> list[Update]:
    """Return what resolves the published claims among these. An update with ``not_sent`` must be fenced.

    ``in_term``: all updates are fenced, so that no newer term has changed a row.
    """
    published = (claim for claim in claims if claim.state is ClaimState.PUBLISHED)
    return [_update(claim, in_term) for claim in published if claim.resolution is not Resolution.KEEP_OPEN]


def late_updates(claims: Iterable[Claim]) -> list[Update]:
    """Return what can be written about claims of ended terms: that a message was accepted, or was not sent.

    An unsent claim is only marked, because a newer term may have read the entry's row. That term takes the claim back.
    """
    updates = []
    for claim in claims:
        last = claim.publish_abandoned("")
        if last.accepted:
            updates.append(_update(last, in_term=False))
        elif last.state is ClaimState.PUBLISHED and last.resolution is Resolution.TAKE_BACK:
            updates.append(Update(claim.key, claim.json, UNSENT, claim.operation.entry, "", (), ()))
    return updates


def _update(claim: Claim, in_term: bool) -> Update:
    operation = claim.operation
    replaces = [claim.row] if claim.row else []
    match claim.resolution:
        case Resolution.CONFIRM:
            row, records = operation.row, operation.records
            if not in_term:  # guard: claim-confirm-uncertain-row
                # A newer term may have recorded the claim as uncertain.
                replaces += filter(None, [raw(uncertain_row(claim.row))])
        case Resolution.RECORD_UNCERTAIN:
            row = claim.uncertain_row()
            records = tuple(uncertain_record(record, claim.reason, claim.detail) for record in operation.records)
        case _:
            return Update(claim.key, claim.json, "", operation.entry, operation.expected, replaces, (), not_sent=True)
    return Update(claim.key, claim.json, "", operation.entry, row, replaces, records)


# --- Claims of earlier terms


def uncertain_update(claim: OpenClaim) -> tuple[Update, LedgerRow | None]:
    """Return what records an open claim as uncertain, and the entry's new row, if the claim has one.

    The claim is kept as ``uncertain``, since the process that made it may confirm it later.
    """
    row = uncertain_row(claim.row)
    replaces = [claim.row] if row is not None else []
    records = [uncertain_record(record) for record in claim.records]
    return Update(claim.key, claim.json, "uncertain", claim.entry, raw(row), replaces, records), row


def take_back_updates(claims: Iterable[OpenClaim], rows: Mapping[str, str]) -> list[Update]:
    """Return what takes unsent claims back. ``rows`` are the rows of their entries.

    If the row of a later occurrence has replaced the claimed row, the occurrence is not sent any more, and is recorded
    as skipped.
    """
    now, updates = dict(rows), []
    # Newest first: what is taken back may restore the row of an earlier one.
    for claim in sorted(claims, key=_revision, reverse=True):
        replaced = bool(claim.row and now.get(claim.entry)) and now[claim.entry] != claim.row
        records = tuple(map(skipped_record, claim.records)) if replaced else ()  # guard: unsent-row-replaced
        replaces = [claim.row] if claim.row else []
        updates.append(Update(claim.key, claim.json, "", claim.entry, claim.before, replaces, records, not_sent=True))
        if claim.row and not replaced:
            now[claim.entry] = claim.before
    return updates


def _revision(claim: OpenClaim) -> int:
    row = LedgerRow.parse(claim.row) if claim.row else None
    return row.rev if row is not None else 0
