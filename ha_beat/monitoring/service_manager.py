"""Messages to systemd (``sd_notify``): when this replica is ready, and that its main loop makes progress."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """Socket of the service manager that started this process. Without one, nothing is sent."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """``environment`` has ``NOTIFY_SOCKET``; a watchdog adds ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        found = os.environ if environment is None else environment
        address = found.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        #: True if the service manager expects a sign of life.
        self.watchdog = bool(found.get("WATCHDOG_USEC")) and found.get("WATCHDOG_PID") in (None, str(os.getpid()))
        self._ready = False

    def watch(self, *, ready: bool, progress: bool) -> None:
        """Report the first time that this replica is ``ready``, and a sign of life if its main loop makes progress."""
        lines = []
        if ready and not self._ready:
            lines.append("READY=1")
        if progress and self.watchdog:
            lines.append("WATCHDOG=1")
        if lines and self._send("\n".join(lines)):
            self._ready = self._ready or ready

    def stopping(self) -> None:
        """Report that this replica stops."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(message.encode(), self._address)
            return True
        return False
