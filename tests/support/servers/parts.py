"""Parts that a test needs, and the skip or failure if one is missing."""

import os
import random
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, TypeVar

import pytest

LOCALHOST = "127.0.0.1"
T = TypeVar("T")


class PartMissing(Exception):
    """A part of the test (a server, a compiler) is not available on this machine. The text says why."""


class Part(ABC):
    """Real part of a test. A context manager: started on entry, closed on exit."""

    @abstractmethod
    def start(self) -> Self:
        """Start it. Raises PartMissing if this machine can't."""

    @abstractmethod
    def close(self) -> None:
        """Stop it and leave nothing behind. Idempotent."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def need(make: Callable[[], T]) -> T:
    """Return `make()`, started if it is a server; leave it by `with` (or `close`).

    If the part is missing, the test is skipped with the reason, or fails if CI=true.
    """
    try:
        part = make()
        if isinstance(part, Part):
            try:
                part.start()
            except BaseException:
                part.close()
                raise
    except PartMissing as missing:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"a part that CI must have is missing: {missing}", pytrace=False)
        pytest.skip(str(missing))
    return part


def wait_for(predicate: Callable[[], T | None], timeout: float = 30.0, what: str = "", interval: float = 0.02) -> T:
    """Poll until `predicate` returns something truthy, and return that.

    An exception of the predicate (other than PartMissing) counts as 'not yet'. `timeout` and `interval` are in
    seconds. After `timeout`, raises AssertionError with `what` and the last result or exception.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            answer = predicate()
        except PartMissing:
            raise
        except Exception as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s for {what or 'a condition'}, but got no result; last: {last!r}")
        time.sleep(interval)


# Below the kernel's ephemeral range: no outgoing connection may take the port of a stopped server. Each worker of xdist
# has its own, or a port that must stay closed could be opened by a server of another worker.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_PORTS = range(14000 + _WORKER, 32000, 8)
_given_ports: set[int] = set()
_port_guard = threading.Lock()
_port_random = random.Random(os.urandom(8))


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free and that this process has not given out before."""
    with _port_guard:
        for _ in range(2000):
            port = _port_random.choice(_PORTS)
            if port in _given_ports:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind((LOCALHOST, port))
                except OSError:
                    continue
            _given_ports.add(port)
            return port
    raise PartMissing("no free port on 127.0.0.1")
