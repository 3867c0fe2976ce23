"""Adapter for SQS, without the retries of Amazon's client, which may deliver a message more than once."""

from __future__ import annotations

from typing import Any

from ha_beat.dispatch.brokers.adapter import BrokerAdapter, Publish, Sent
from ha_beat.dispatch.messages.deferred import Arguments
from ha_beat.errors import StoreUnavailable
from ha_beat.exception_text import exception_line
from ha_beat.reasons import PublishOutcome


class SqsAdapter(BrokerAdapter):
    """Adapter for one service, whose client makes one attempt for each message."""

    def _options(self) -> dict[str, Any]:
        given = self._app.connection_for_write().transport_options or {}
        no_retries = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"total_max_attempts": 1},
        }
        return {"client-config": {**(given.get("client-config") or {}), **no_retries}}

    def is_message_error(self, exc: Exception) -> bool:
        # kombu counts all errors of Amazon's client as channel errors.
        return isinstance(exc, _botocore_errors().ClientError) and 400 <= _status(exc) < 500

    def _put(self, publish: Publish, arguments: Arguments) -> Sent:
        errors = _botocore_errors()
        try:
            publish(arguments)
        except (errors.EndpointConnectionError, errors.ConnectTimeoutError) as exc:
            # The only attempt has failed to connect.
            raise StoreUnavailable(exception_line(exc), acted=False) from exc
        except Exception as exc:
            if self.is_message_error(exc):
                return Sent(PublishOutcome.REFUSED, exception_line(exc))
            return Sent(PublishOutcome.UNKNOWN, exception_line(exc), broken=True)
        return Sent(PublishOutcome.ACCEPTED)


def _botocore_errors() -> Any:
    """Return the exceptions of Amazon's client, which is installed if the broker is SQS."""
    import botocore.exceptions

    return botocore.exceptions


def _status(exc: Any) -> int:
    """Return the HTTP status of an error answer, or 0."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
