"""History of a run: messages that arrived at the queue, and faults of the cluster.

Every event has `t`, seconds of CLOCK_BOOTTIME, and `type`:
- message: task, id, queue, and from the `ha_beat` header entry, scheduled_at, epoch, run_count, cluster
  (None on a message of stock beat)
- fault: fault, phase ("start", "end" or "at"), and whatever the fault adds (replica, seconds, ...)
- note: anything else (such as an error of a consumer)

A consumer replaces the worker, so that the history has the messages that the broker accepted, in its order.
"""

import contextlib
import json
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Self, TypeAlias

import redis
from kombu import Connection, Queue

from tests.support.servers import wait_for

Event: TypeAlias = dict[str, Any]


def boottime() -> float:
    """Return the seconds of a clock that also counts suspended time, if there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class History:
    """Events of one run. Thread-safe."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._guard = threading.Lock()

    def record(self, **event: Any) -> None:
        """Append one event; `t` is now unless given."""
        self.extend([event])

    def extend(self, events: Iterable[Event]) -> None:
        """Append events; `t` defaults to now."""
        now = boottime()
        with self._guard:
            self._events += [{"t": now, **event} for event in events]

    def fault(self, name: str, phase: str = "at", **details: Any) -> None:
        """Record a fault."""
        self.record(type="fault", fault=name, phase=phase, **details)

    def events(self, kind: str | None = None) -> list[Event]:
        """Return a copy of all events, or of those of one type, in order of arrival."""
        with self._guard:
            return [event for event in self._events if kind is None or event["type"] == kind]

    def messages(self, entry: str | None = None) -> list[Event]:
        """Return the messages, of one entry if named."""
        return [m for m in self.events("message") if entry is None or m["entry"] == entry]

    def faults(self, name: str | None = None) -> list[Event]:
        """Return the faults, of one name if given."""
        return [f for f in self.events("fault") if name is None or f["fault"] == name]

    def wait_for_messages(self, count: int, timeout: float = 10.0, entry: str | None = None) -> list[Event]:
        """Wait until at least `count` messages have been recorded, and return all of them."""
        what = f"{count} messages of {entry or 'any entry'}"
        return wait_for(lambda: found if len(found := self.messages(entry)) >= count else None, timeout, what)

    def wait_for_more(self, count: int, entry: str | None = None, timeout: float = 30.0) -> None:
        """Wait for `count` further messages."""
        self.wait_for_messages(len(self.messages(entry)) + count, timeout, entry)

    def wait_for_message_after(self, instant: float, entry: str, timeout: float = 60.0) -> Event:
        """Wait for a message of the entry that arrives after this time of `t`, and return it."""
        return wait_for(
            lambda: next((m for m in self.messages(entry) if m["t"] > instant), None), timeout, f"a later {entry}"
        )


def message_event(headers: dict[str, Any], queue: str) -> Event:
    """Return the event of a Celery message (protocol 2) with these headers."""
    ours = headers.get("ha_beat") or {}
    event = {"type": "message", "queue": queue, "task": headers.get("task"), "id": headers.get("id")}
    return event | {name: ours.get(name) for name in ("entry", "scheduled_at", "epoch", "run_count", "cluster")}


def queued_instants(server: redis.Redis, entry: str) -> list[datetime]:
    """Return the due instant of each message of an entry in a Redis broker's queue, oldest first."""
    messages: Any = server.lrange("celery", 0, -1)
    headers = [json.loads(message)["headers"]["ha_beat"] for message in reversed(messages)]
    return [datetime.fromisoformat(header["scheduled_at"]) for header in headers if header["entry"] == entry]


class QueueConsumer(ABC):
    """Thread that empties queues into a history and reconnects after an outage of the broker."""

    def __init__(self, history: History, queues: Sequence[str] = ("celery",)) -> None:
        self.history = history
        self.queues = tuple(queues)
        self.ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def consume(self) -> None:
        """Consume until `ending` is set or the broker fails with an exception."""

    def _run(self) -> None:
        trouble = ""
        while not self.ending.is_set():
            try:
                self.consume()
                trouble = ""
            except Exception as error:
                if trouble != type(error).__name__:
                    trouble = type(error).__name__
                    self.history.record(type="note", note="consumer", trouble=f"{trouble}: {error}"[:200])
                self.ending.wait(0.05)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._thread.join(10)


# Idempotent under a token: after a lost reply, the script returns the same messages again.
_TAKE = """
local answer = redis.call('GET', KEYS[2])
if answer == ARGV[1] then return redis.call('LRANGE', KEYS[3], 0, -1) end
local taken = redis.call('LRANGE', KEYS[1], -tonumber(ARGV[2]), -1)
if #taken == 0 then return taken end
redis.call('LTRIM', KEYS[1], 0, -(#taken + 1))
redis.call('DEL', KEYS[3])
for i = #taken, 1, -1 do redis.call('RPUSH', KEYS[3], taken[i]) end
redis.call('SET', KEYS[2], ARGV[1])
return redis.call('LRANGE', KEYS[3], 0, -1)
"""


class RedisQueueConsumer(QueueConsumer):
    """Consumer of lists of a Redis broker. It takes up to 500 messages at a time, oldest first.

    A lost reply neither loses nor duplicates a message in the history. It polls every 10 ms, which is the resolution
    of arrival times. A server that loses its last second (killed with appendfsync everysec) returns messages that
    were already taken: use `--appendfsync always` if that matters.
    """

    BATCH = 500
    IDLE_SECONDS = 0.01

    def __init__(self, history: History, url: str, queues: Sequence[str] = ("celery",)) -> None:
        super().__init__(history, queues)
        self.url = url
        self._name = uuid.uuid4().hex
        self._takes = 0

    def consume(self) -> None:
        with contextlib.closing(self.connect()) as client:
            take = client.register_script(_TAKE)
            while not self.ending.is_set():
                if not sum(self._take(take, queue) for queue in self.queues):
                    self.ending.wait(self.IDLE_SECONDS)

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=2.0, socket_connect_timeout=2.0)

    def _take(self, take: Callable[..., Any], queue: str) -> int:
        token = f"{self._name}:{self._takes}"
        keys = [queue, f"tests:taken-by:{queue}", f"tests:taken:{queue}"]
        raw = take(keys=keys, args=[token, self.BATCH])
        self._takes += bool(raw)
        self.history.extend(message_event(json.loads(message).get("headers") or {}, queue) for message in raw)
        return len(raw)


class AmqpQueueConsumer(QueueConsumer):
    """Consumer of queues of an AMQP broker that acknowledges recorded messages.

    A message redelivered after a lost connection becomes a note if it was recorded before.
    """

    def __init__(self, history: History, url: str, queues: Sequence[str] = ("celery",)) -> None:
        super().__init__(history, queues)
        self.url = url
        self._recorded: set[str] = set()

    def consume(self) -> None:
        with Connection(self.url, connect_timeout=2, heartbeat=0) as connection:
            declared = [Queue(name, routing_key=name, exchange=name) for name in self.queues]
            with connection.Consumer(declared, callbacks=[self._receive], prefetch_count=200, accept=None):
                while not self.ending.is_set():
                    with contextlib.suppress(socket.timeout):
                        connection.drain_events(timeout=0.2)

    def _receive(self, _body: object, message: Any) -> None:
        event = message_event(message.headers or {}, str(message.delivery_info.get("routing_key")))
        again = bool(message.delivery_info.get("redelivered")) and event["id"] in self._recorded
        self.history.extend([{**event, "type": "note", "note": "redelivered"} if again else event])
        self._recorded.add(str(event["id"]))
        message.ack()
