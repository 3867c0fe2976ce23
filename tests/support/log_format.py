"""Log format of the test apps' processes: each record of ha_beat ends with its action and fields.

A test waits for ``action=term_ended`` or ``action=path_chosen path=claim`` instead of for a sentence.
"""

import logging
from typing import TYPE_CHECKING, Any

from celery.signals import after_setup_logger

if TYPE_CHECKING:
    import pytest

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color", "cluster", "replica", "action", "data"}


def actions(caplog: "pytest.LogCaptureFixture") -> list[str]:
    """Return the actions of the captured records, in order. Records of other packages have none."""
    return [record.__dict__["action"] for record in caplog.records if "action" in record.__dict__]


class ActionFormatter(logging.Formatter):
    """Formatter that appends ``action=…`` and the other ``extra`` fields to the first line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the name in logging
        line = super().formatMessage(record)
        action = getattr(record, "action", None)
        if action is None:
            return line
        fields = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        return f"{line} action={action} {fields}"


@after_setup_logger.connect
def _append_actions(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(ActionFormatter("[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"))
