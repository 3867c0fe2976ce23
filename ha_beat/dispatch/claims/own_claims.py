"""Claims of this process, and their resolution when the term or the process ends first."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ha_beat.dispatch.claims.claim import Claim
from ha_beat.dispatch.claims.store import ClaimStore
from ha_beat.dispatch.claims.updates import late_updates, resolving_updates
from ha_beat.dispatch.protocol import FencedOff
from ha_beat.errors import StoreError
from ha_beat.store.lease import Term

if TYPE_CHECKING:
    import redis


class OwnClaims:
    """Claims of the batches that are not answered yet, and those that ended terms left behind."""

    def __init__(self, store: ClaimStore) -> None:
        self._store = store
        #: Claims of unanswered batches.
        self.by_key: dict[str, Claim] = {}
        #: Claims of ended terms, until the store knows that they were accepted or not sent.
        self._ended: list[Claim] = []

    def resolve_ended(self, current: Term | None = None) -> None:
        """Confirm the accepted claims of all terms but ``current``, and mark the unsent ones.

        Raises:
            StoreUnavailable: the outcome is unknown. Call it again.
        """
        for key, claim in list(self.by_key.items()):
            if current is None or claim.nonce != current.nonce:
                # In this order, because a signal handler may call `resolve_at_stop` in between.
                self._ended.append(claim)
                del self.by_key[key]
        self._store.resolve(late_updates(self._ended))
        self._ended = []

    def resolve_at_stop(self, term: Term, client: redis.Redis) -> None:
        """Resolve all claims and take back those that were not sent. Raises nothing.

        A signal handler calls it, with its own connection ``client``, while ``term`` still holds the lease.
        """
        for key, claim in list(self.by_key.items()):
            self.by_key[key] = claim.publish_abandoned("this replica was stopped")
        claims = [*self.by_key.values(), *self._ended]
        updates = resolving_updates(claim for claim in claims if claim.nonce == term.nonce)
        final = [update for update in updates if not update.not_sent]
        late = late_updates(claim for claim in claims if claim.nonce != term.nonce)
        with suppress(StoreError):
            self._store.resolve([*final, *late], client=client)
            try:
                self._store.resolve([update for update in updates if update.not_sent], term, client)
            except FencedOff:
                self._store.resolve(late_updates(claims), client=client)
