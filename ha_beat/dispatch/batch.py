"""Call of the dispatch script, which checks the fence, enqueues and records a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ha_beat.dispatch.capture import RedisCommands
from ha_beat.dispatch.protocol import Answer, FencedOff, Operation
from ha_beat.reasons import AnswerKind
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason
from ha_beat.store.scripts import Script, text

if TYPE_CHECKING:
    import redis


class BatchScript:
    """Dispatch script with the keys of one cluster. Messages are :class:`RedisCommands`."""

    def __init__(self, keys: Keys, journal_size: int) -> None:
        self._keys = keys
        self._journal_size = journal_size
        self._script = Script("dispatch")

    def run(self, client: redis.Redis, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        """Run a batch. Running the same batch again is safe.

        Raises:
            FencedOff: the term is over.
            StoreUnavailable: the outcome is unknown.
            StoreRefused: nothing was done.
        """
        argv: list[Any] = [term.epoch, term.nonce, term.gen, term.run_id, self._journal_size, len(operations)]
        for operation in operations:
            argv += (operation.entry, operation.expected, operation.row, operation.request, operation.step)
            argv += (operation.scheduled_ms, operation.busy_ms, int(operation.overlaps), operation.key)
            argv += (len(operation.records), *operation.records)
            commands = _commands_of(operation)
            argv.append(len(commands))
            for command in commands:
                argv += (len(command), *command)
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.requests, self._keys.progress]
        keys.append(self._keys.busy)
        # redis-py takes several times as long to encode a text as to pass bytes on.
        argv = [part.encode() if isinstance(part, str) and part.isascii() else part for part in argv]
        answer, *rest = (text(part) for part in self._script(client, keys, argv))
        if answer == "fenced":
            raise FencedOff(fence_reason(rest[0]))
        return [Answer(AnswerKind(kind), detail) for kind, detail in zip(rest[::2], rest[1::2], strict=True)]


def _commands_of(operation: Operation) -> Sequence[Sequence[str]]:
    message = operation.message
    if message is None:
        return ()
    if not isinstance(message, RedisCommands):
        raise TypeError(f"the dispatch script can't send a {type(message).__name__}")
    return message.commands
