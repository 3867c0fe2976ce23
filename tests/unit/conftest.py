"""Unit tests use no server."""

import pytest
from celery import _state

from tests.support.servers import ServerProcess


@pytest.fixture(autouse=True)
def _no_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test in tests/unit starts a server: it belongs to tests/integration")

    monkeypatch.setattr(ServerProcess, "__init__", refuse)
    if {"_session_redis", "redis_server", "rabbitmq"} & set(request.fixturenames):
        refuse()


@pytest.fixture(autouse=True)
def _own_default_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules without an app use the current one, which a test that ran before may have set."""
    monkeypatch.setattr(_state._tls, "current_app", None)
    monkeypatch.setattr(_state, "default_app", None)
