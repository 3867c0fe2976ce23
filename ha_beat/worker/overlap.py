"""Reports of workers that a message has ended, for entries with ``overlap = "skip"``.

:mod:`ha_beat.guard` imports the module, which connects it to the worker's signals. Only messages whose header has the
key ``busy`` are reported: when they are received, and when they have succeeded, failed, or were revoked, rejected or
expired. A retry is not the end, because its message has the same header. If Redis is unreachable, the end is reported
later.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from celery import Celery, signals, states

from ha_beat.exception_text import exception_line, printable
from ha_beat.headers import header_in
from ha_beat.store.keys import Keys
from ha_beat.store.scripts import Script
from ha_beat.worker.link import free_after_fork, link_of

logger = logging.getLogger("ha_beat")

#: Number of received messages whose headers are remembered, because some failures are signalled without a header. An
#: older header is remembered as long as the worker holds the message.
_NEWEST_RECEIVED = 1000

#: Most reports that wait for Redis.
_MOST_WAITING = 1000

#: Seconds between two attempts to send the waiting reports.
_RETRY = 2.0

_received: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
_script = Script("ended")


class LateReports(threading.Thread):
    """Thread that sends the reports that Redis did not take. It ends when none is left."""

    def __init__(self) -> None:
        super().__init__(name="ha_beat-ends", daemon=True)
        self._wake = threading.Event()
        self.waiting: OrderedDict[tuple[str, str, str], Celery] = OrderedDict()
        #: True once the thread takes no more reports.
        self.ended = False

    def _goes_on(self) -> bool:
        with _late_guard:
            self.ended = not self.waiting
        return not self.ended

    def run(self) -> None:
        while self._goes_on():
            self._wake.wait(_RETRY)
            for report, app in list(self.waiting.items()):
                try:
                    _send(app, *report)
                except Exception:
                    # To the end, so that a report that always fails does not hold up the others.
                    with suppress(KeyError):
                        self.waiting.move_to_end(report)
                    break
                self.waiting.pop(report, None)


_late: LateReports | None = None
_late_guard = threading.Lock()
free_after_fork(_late_guard)


def _header_of(request: Any) -> Mapping[str, Any] | None:
    """Return the header of a request or a message whose end must be reported."""
    header = header_in(request)
    return header if header is not None and header.get("busy") else None


def _send(app: Celery, cluster: str, entry: str, key: str) -> None:
    _script(link_of(app).client(), [Keys(cluster).busy], [entry, key])


def _report(app: Celery, header: Mapping[str, Any] | None, *, ended: bool = True) -> None:
    """Report that a message was received or has ended. Never raises."""
    if header is None:
        return
    cluster, entry, key = str(header.get("cluster")), str(header.get("entry")), str(header["busy"])
    try:
        _send(app, cluster, entry if ended else "", key)
    except Exception as exc:
        if not ended:
            return
        logger.warning(
            "The end of a message of %s can't be reported and is reported later: %s",
            printable(entry),
            exception_line(exc),
            extra={"action": "end_not_reported", "entry": printable(entry), "detail": exception_line(exc)},
        )
        _report_later(app, (cluster, entry, key))


def _report_later(app: Celery, report: tuple[str, str, str]) -> None:
    global _late  # noqa: PLW0603 -- one thread per process
    with _late_guard:
        # A thread does not survive a fork.
        if _late is None or _late.ended or not _late.is_alive():
            waiting = _late.waiting if _late is not None else OrderedDict()
            _late = LateReports()
            _late.waiting.update(waiting)
        _late.waiting[report] = app
        while len(_late.waiting) > _MOST_WAITING:
            _late.waiting.popitem(last=False)
        if not _late.is_alive():
            _late.start()


def _forget_finished() -> None:
    from celery.worker import state

    for old in list(_received)[:-_NEWEST_RECEIVED]:
        if old not in state.requests:
            del _received[old]


@signals.task_received.connect(weak=False)
def _on_received(sender: Any = None, request: Any = None, **_: Any) -> None:
    header = _header_of(request)
    if header is not None:
        _received[str(request.id)] = header
        if len(_received) % _NEWEST_RECEIVED == 0:
            _forget_finished()
        _report(sender.app, header, ended=False)


@signals.task_postrun.connect(weak=False)
def _on_postrun(task: Any = None, state: Any = None, retval: Any = None, **_: Any) -> None:
    requeued = state == states.REJECTED and getattr(retval, "requeue", False)
    if state != states.RETRY and not requeued:
        _report(task.app, _header_of(task.request))


@signals.task_failure.connect(weak=False)
def _on_failure(sender: Any = None, task_id: Any = None, **_: Any) -> None:
    """Report a task whose process has died. The worker's main process remembers the header."""
    header = _received.pop(str(task_id), None)
    if header is not None:
        _report(sender.app, header)


@signals.task_revoked.connect(weak=False)
def _on_revoked(sender: Any = None, request: Any = None, **_: Any) -> None:
    _report(sender.app, _header_of(request))


@signals.task_unknown.connect(weak=False)
@signals.task_rejected.connect(weak=False)
def _on_rejected(sender: Any = None, message: Any = None, **_: Any) -> None:
    _report(sender.app, _header_of(message))
