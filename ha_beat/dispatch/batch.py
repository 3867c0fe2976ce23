"""Call of the dispatch script, which checks the fence, enqueues and records a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ha_beat.dispatch.messages.capture import RedisCommands
from ha_beat.dispatch.protocol import DONE, Answer, FencedOff, Operation
from ha_beat.reasons import AnswerKind
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason
from ha_beat.store.scripts import Script, text

if TYPE_CHECKING:
    import redis


class BatchScript:
    """Dispatch script with the keys of one cluster. Messages are :class:`RedisCommands`."""

    def __init__(self, keys: Keys, journal_size: int) -> None:
        self._keys = [keys.lease, keys.ledger, keys.journal, keys.requests, keys.progress, keys.busy]
        self._journal_size = journal_size
        self._script = Script("dispatch")

    def run(
        self,
        client: redis.Redis,
        term: Term,
        operations: Sequence[Operation],
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Answer]:
        """Run a batch. Running the same batch again is safe. Raises as :meth:`Dispatcher.submit`.

        ``meanwhile`` is as in :meth:`Script.__call__`.
        """
        batch = [_array(len(operations)), *(operation.packed or pack(operation) for operation in operations)]
        argv: list[Any] = [term.epoch, term.nonce, term.gen, term.run_id, self._journal_size, b"".join(batch)]
        answer, *rest = (text(part) for part in self._script(client, self._keys, argv, meanwhile))
        if answer == "fenced":
            raise FencedOff(fence_reason(rest[0]))
        answers = [DONE] * len(operations)
        for number, kind, detail in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            answers[int(number) - 1] = Answer(AnswerKind(kind), detail)
        return answers


def pack(operation: Operation) -> bytes:
    """Return an operation in MessagePack, as the script reads it.

    Raises:
        TypeError: a script can't send the operation's message.
    """
    words = (
        operation.entry,
        operation.expected,
        operation.row,
        operation.request,
        str(operation.step),
        str(operation.scheduled_ms),
        str(operation.busy_ms),
        str(int(operation.overlaps)),
        operation.key,
    )
    commands = _commands_of(operation)
    packed = [_array(len(words) + 2), *map(_word, words), _words(operation.records), _array(len(commands))]
    return b"".join([*packed, *map(_words, commands)])


def _commands_of(operation: Operation) -> Sequence[Sequence[str]]:
    message = operation.message
    if message is None:
        return ()
    if not isinstance(message, RedisCommands):
        raise TypeError(f"the dispatch script can't send a {type(message).__name__}")
    return message.commands


def _array(length: int) -> bytes:
    return b"\xdd" + length.to_bytes(4, "big")


def _word(value: str) -> bytes:
    raw = value.encode()
    return b"\xdb" + len(raw).to_bytes(4, "big") + raw


def _words(values: Sequence[str]) -> bytes:
    return _array(len(values)) + b"".join(map(_word, values))
