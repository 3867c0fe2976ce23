"""Tests of the messages to systemd, received on a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_beat.monitoring.service_manager import ServiceManager


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def received(receiver: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(receiver.recv(1000).decode())
        except BlockingIOError:
            return found


def manager(receiver: socket.socket, **more: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": receiver.getsockname(), **more})


def test_ready_is_sent_once(receiver):
    service = manager(receiver)
    for ready in (False, True, True):
        service.watch(ready=ready, progress=True)
    service.stopping()
    assert received(receiver) == ["READY=1", "STOPPING=1"]


def test_watchdog_is_fed_only_while_the_main_loop_makes_progress(receiver):
    service = manager(receiver, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    for progress in (True, False, True):
        service.watch(ready=False, progress=progress)
    assert received(receiver) == ["WATCHDOG=1"] * 2


def test_watchdog_of_another_process_is_not_fed(receiver):
    manager(receiver, WATCHDOG_USEC="30000000", WATCHDOG_PID="1").watch(ready=False, progress=True)
    assert received(receiver) == []


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "1"}])
def test_nothing_is_sent_without_a_receiver(environment):
    service = ServiceManager(environment)
    service.watch(ready=True, progress=True)
    service.stopping()
