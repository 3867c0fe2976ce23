"""Tracebacks in the log: each distinct error once, without secrets."""

import logging

import pytest

from ha_beat import events
from ha_beat.monitoring.logs import LogWriter
from ha_beat.reasons import EntryFault


def raised(text: str, *, elsewhere: bool = False) -> Exception:
    try:
        if elsewhere:
            raise ConnectionError(text)
        raise ConnectionError(text)
    except ConnectionError as exc:
        return exc


def failed(entry: str, exc: Exception) -> events.EntryFailed:
    return events.EntryFailed.raised(entry, EntryFault.MESSAGE_NOT_BUILT, exc)


def test_traceback_is_logged_once_per_entry_and_error(caplog: pytest.LogCaptureFixture):
    """The text may differ at each occurrence."""
    write = LogWriter("replica", "shop")
    told = [("a", "1", False), ("a", "2", False), ("b", "3", False), ("a", "4", True), ("a", "5", False)]
    for entry, text, elsewhere in told:
        write(failed(entry, raised(text, elsewhere=elsewhere)))
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True, True, False]
    assert [vars(record)["detail"][-1] for record in caplog.records] == ["1", "2", "3", "4", "5"]


def test_traceback_has_no_secrets(caplog: pytest.LogCaptureFixture):
    LogWriter("replica", "shop")(failed("a", raised("amqp://u:slash/pw@h//")))
    logging.getLogger("ha_beat").error("A turn failed", exc_info=raised("redis://:at@pw@h"))
    assert "Traceback" in caplog.text
    assert "pw" not in caplog.text
