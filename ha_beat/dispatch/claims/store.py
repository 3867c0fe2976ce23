"""Claims in the lease's Redis. They outlive the process that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ha_beat.dispatch.batch import BatchScript
from ha_beat.dispatch.claims.claim import Claim
from ha_beat.dispatch.claims.updates import UNSENT, Update
from ha_beat.dispatch.messages.capture import RedisCommands
from ha_beat.dispatch.protocol import Answer, FencedOff, OpenClaim, Operation
from ha_beat.reasons import UncertainPolicy
from ha_beat.store.connections import Link
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Script, text

if TYPE_CHECKING:
    import redis

#: How long a claim that a newer term recorded as uncertain waits for a late confirmation.
_KEEP_UNCERTAIN = timedelta(days=1)


class ClaimStore:
    """Store of claims: one field of a hash for each, with the claim's state in front."""

    def __init__(self, link: Link, keys: Keys, journal_size: int) -> None:
        self._link = link
        self._keys = keys
        self._journal_size = journal_size
        self._batch = BatchScript(keys, journal_size)
        self._resolve = Script("resolve_claims", although_full=True)

    def write(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        """Run operations, under the fence. Raises as :meth:`BatchScript.run`."""
        return self._batch.run(self._link.client(), term, operations)

    def operation_for(self, claim: Claim) -> Operation:
        """Return the operation that writes a claim and the entry's row while it is claimed."""
        store = RedisCommands((("HSET", self._keys.claims, claim.key, f"open {claim.json}"),))
        return replace(claim.operation, row=claim.row, records=(), message=store)

    def resolve(
        self, updates: Sequence[Update], term: Term | None = None, client: redis.Redis | None = None
    ) -> list[bool]:
        """Write updates, each once. Return for each whether its claim was still unresolved.

        With ``term`` the updates are fenced. Without it, the caller reports what the broker answered to its own claims.

        Raises:
            FencedOff: the term is over.
            StoreUnavailable: the outcome is unknown. Writing the same updates again is safe.
        """
        if not updates:
            return []
        fence: list[Any] = [term.epoch, term.nonce] if term is not None else ["", ""]
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.claims, self._keys.busy]
        argv = [*fence, self._journal_size, len(updates), *(part for update in updates for part in update.argv())]
        answer, *rest = self._resolve(client or self._link.client(), keys, argv)
        if text(answer) == "fenced":
            raise FencedOff(fence_reason(text(rest[0])))
        return [bool(int(part)) for part in rest]

    def open_claims(self, term: Term) -> list[OpenClaim]:
        """Return the open and unsent claims, and remove those that were recorded as uncertain more than a day ago.

        Raises:
            StoreError: Redis did not answer, or refused.
        """
        with mapped_redis_errors():
            client = self._link.client()
            found: Mapping[Any, Any] = client.hgetall(self._keys.claims)
            claims, stale = [], []
            for field, value in found.items():
                try:
                    state, written_ms, claim = parse_claim(text(field), text(value))
                except (ValueError, KeyError, TypeError, RecursionError):
                    # A claim that is malformed, or was written by a newer version, must not stop this leader.
                    continue
                if state == "open" or claim.unsent:
                    claims.append(claim)
                # An epoch is Redis' time in ms at the start of the term, or more.
                elif term.epoch - written_ms > _KEEP_UNCERTAIN / timedelta(milliseconds=1):
                    stale.append(field)
            if stale:
                client.hdel(self._keys.claims, *stale)
        return claims


def parse_claim(key: str, value: str) -> tuple[str, int, OpenClaim]:
    """Return a stored claim: its state, the Unix milliseconds at which it was written, and the claim.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is malformed, or was written by a newer version.
    """
    state, _, raw = value.partition(" ")
    content = json.loads(raw)
    claim = OpenClaim(
        key,
        raw,
        str(content["entry"]),
        str(content["by"]),
        UncertainPolicy(content["policy"]),
        str(content["row"]),
        tuple(str(record) for record in content["records"]),
        before=str(content["before"]),
        unsent=state == UNSENT,
    )
    return state, int(content["ms"]), claim
