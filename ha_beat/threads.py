"""Threads that must run as long as the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.exception_text import exception_line

#: Longest time in seconds between two starts of a thread that ends each time.
_LONGEST_PAUSE = 60.0


class Wake:
    """Wake-up call for one thread that waits.

    :class:`~queue.SimpleQueue` takes no lock of Python's, so a signal handler may call it.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[None] = SimpleQueue()

    def __call__(self) -> None:
        """Wake the thread. If it does not wait, its next wait ends immediately."""
        self._calls.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds``. Return True if the thread was woken."""
        try:
            self._calls.get(timeout=max(seconds, 0.0))
        except Empty:
            return False
        with suppress(Empty):
            while True:
                self._calls.get_nowait()
        return True


class LastingThread:
    """Daemon thread that is started again if it ends. Each restart is an event."""

    def __init__(
        self, *, name: str, run: Callable[[], None], clock: Clock, emit: Callable[[events.Event], None]
    ) -> None:
        self._name = name
        self._target = run
        self._clock = clock
        self._emit = emit
        self._thread: threading.Thread | None = None
        self._ended = ""
        self._start_at = self._started_at = 0.0
        self._pause = 0.5
        self._closing = False
        self._starting = threading.Lock()

    def keep_running(self) -> None:
        """Start the thread, or start it again if it has ended. Must be called after any fork.

        Raises:
            RuntimeError: the system refuses another thread. The next call tries again.
        """
        if self._closing or (self._thread is not None and self._thread.is_alive()):
            return
        # Without waiting: if the lock is taken, another thread starts it.
        if self._starting.acquire(blocking=False):
            try:
                self._start()
            finally:
                self._starting.release()

    def _start(self) -> None:
        now = self._clock.elapsed()
        if now < self._start_at:
            return
        if self._thread is not None:
            # A growing pause before the next start, if the thread ends again soon.
            self._pause = 1.0 if now - self._started_at > _LONGEST_PAUSE else min(2 * self._pause, _LONGEST_PAUSE)
            self._start_at = now + self._pause
            self._emit(events.ThreadRestarted(self._name, self._ended))
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread, self._started_at = thread, now

    def stop(self) -> None:
        """Do not start the thread again, and start no further turn. Takes no lock, so a signal handler may call it."""
        self._closing = True

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, at most ``seconds``."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def _run(self) -> None:
        try:
            self._target()
            self._ended = "it returned"
        except BaseException as exc:
            # SystemExit too: a library may raise it in a thread.
            self._ended = exception_line(exc)


class RepeatingThread(LastingThread):
    """Lasting thread that repeats a turn until it is closed. A subclass defines the turn."""

    def __init__(self, *, name: str, interval: float, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        """``interval`` is in seconds, between two turns."""
        super().__init__(name=name, run=self._repeat, clock=clock, emit=emit)
        self._interval = interval
        self._wake = Wake()

    def wake(self) -> None:
        """Start the next turn now. Takes no lock, so a signal handler may call it."""
        self._wake()

    def close(self, seconds: float) -> None:
        """End the thread. Wait at most ``seconds``; after that the thread ends with the process."""
        self.stop()
        self.wake()
        self.join(seconds)

    def begin(self) -> None:
        """Prepare the thread. Called in it."""

    def turn(self) -> float | None:
        """Do one turn. Return the seconds until the next one, ``None`` for the interval."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds``. Return True if the thread was woken."""
        return self._wake.wait(seconds)

    def end(self) -> None:
        """Finish the work as the thread ends. Must not raise."""

    def _repeat(self) -> None:
        self.begin()
        while not self._closing:
            pause = self.turn()
            self.wait(self._interval if pause is None else pause)
        self.end()
