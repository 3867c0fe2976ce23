"""The script that every batch goes through: the fence, the ledger, and what is written with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ha_beat.dispatch.protocol import Answer, FencedOff, Operation
from ha_beat.reasons import AnswerKind
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason
from ha_beat.store.scripts import Script, text

if TYPE_CHECKING:
    import redis


class BatchScript:
    """Runs operations whose messages are final Redis commands."""

    def __init__(self, keys: Keys, journal_size: int) -> None:
        self._keys = keys
        self._journal_size = journal_size
        self._script = Script("dispatch")

    def run(self, client: redis.Redis, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        """Run a batch. Safe to repeat.

        Raises:
            FencedOff: refused.
            StoreUnavailable: the outcome is unknown.
            StoreRefused: nothing was done.
        """
        flat: list[Any] = [term.epoch, term.nonce, term.gen, term.run_id, self._journal_size, len(operations)]
        for operation in operations:
            flat += (operation.entry, operation.expected, operation.row, operation.request, operation.step)
            flat.append(operation.scheduled_ms)
            flat += (len(operation.records), *operation.records)
            commands: Sequence[Sequence[str]] = operation.message or ()
            flat.append(len(commands))
            for command in commands:
                flat += (len(command), *command)
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.requests]
        answer, *rest = (text(part) for part in self._script(client, keys, flat))
        if answer == "fenced":
            raise FencedOff(fence_reason(rest[0]))
        return [Answer(AnswerKind(kind), detail) for kind, detail in zip(rest[::2], rest[1::2], strict=True)]
