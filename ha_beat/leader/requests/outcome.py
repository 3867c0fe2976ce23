"""Outcome of a request, and other things that all handlers share."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ha_beat.clock import to_ms
from ha_beat.exception_text import printable
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.reasons import ReplyCode
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import MetaChange, Request
from ha_beat.suggest import nearest


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """Reply to a request. The script that writes it also writes ``record`` to the journal and ``change`` to the ledger.

    ``then`` is called after that.
    """

    code: ReplyCode
    data: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    change: MetaChange | None = None
    then: Callable[[], None] | None = None


class RequestRefused(Exception):
    """Refusal of a request. The leader answers with the code and the data."""

    def __init__(self, code: ReplyCode, **data: Any) -> None:
        super().__init__(code)
        self.outcome = RequestOutcome(code, data)


class NotReady(Exception):
    """A request waits for the arguments of its message. It is carried out later."""


#: Work on a request that may take long. It yields after each piece, ``True`` if it waits for a message's arguments, and
#: returns the outcome.
Steps = Generator[bool, None, RequestOutcome]

#: Callable that carries out requests of one kind, in one call or in steps.
Handler = Callable[[Term, Request], RequestOutcome | Steps]


def request_record(term: Term, request: Request, now: datetime, content: Mapping[str, Any]) -> str:
    """Return a journal record about a request, as JSON."""
    return json.dumps(
        {
            **content,
            "ms": to_ms(now),
            "epoch": term.epoch,
            "by": term.holder,
            "asked_by": request.by,
            "request": request.id,
        }
    )


def names(state: EntryState) -> dict[str, str]:
    """Return the fields of a journal record that name the entry: its id, and its name if that differs."""
    return {"entry": state.id, **({"name": state.label} if state.label != state.id else {})}


def find_entry(queue: DueQueue, request: Request) -> EntryState:
    """Return the entry that a request names by its id or, if it is unique, by its name.

    Raises:
        RequestRefused: there is no such entry.
    """
    name = str(request.args.get("entry") or "")
    state = queue.get(name)
    if state is not None:
        return state
    named = [state for state in queue.entries() if printable(state.entry.celery_entry.name) == name]
    if len(named) == 1:
        return named[0]
    known = sorted({printable(state.entry.celery_entry.name) for state in queue.entries()})
    raise RequestRefused(ReplyCode.NO_SUCH_ENTRY, entry=name, nearest=nearest(name, known), entries=len(known))
