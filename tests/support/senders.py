"""Publisher to any broker, and the messages of one entry that it sends."""

from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry

from ha_beat.clock import Clock, SystemClock
from ha_beat.dispatch.brokers.adapter import Delivery, Sent
from ha_beat.dispatch.brokers.publisher import Publisher
from ha_beat.headers import with_header

TASK_ID = "0f0e0d0c-0000-5000-8000-000000000000"
HEADER = {"cluster": "shop", "entry": "report", "scheduled_at": "2030-01-01T12:00:00.000000+00:00"}


class Sender:
    """Publisher, and the messages of one entry that it sends."""

    def __init__(self, broker: str, timeout: float = 0.5, clock: Clock | None = None, **config: Any) -> None:
        self.app = Celery("shop", broker=broker, set_as_current=False)
        self.app.conf.update({"task_default_queue": "jobs.fifo", **config})
        self.publisher = Publisher(self.app, timeout, clock or SystemClock())

    def prepare(self, task: str = "report", *, ahead: bool = False, **options: Any) -> Any:
        due = ScheduleEntry(name="report", task=task, schedule=60, app=self.app)
        prepare = self.publisher.prepare_ahead if ahead else self.publisher.prepare
        return prepare(due, (1,), {}, with_header(options, HEADER, TASK_ID))

    def send(self, message: Any = None) -> Sent:
        return self.send_together([message or self.prepare()])[0]

    def send_together(
        self,
        messages: Sequence[Any],
        before_last: Callable[[], object] = lambda: None,
        before_wait: Callable[[], object] = lambda: None,
    ) -> list[Sent]:
        """Send messages before the broker has answered the first. Call the functions in between."""
        deliveries = [Delivery() for _ in messages]
        for message, delivery in zip(messages, deliveries, strict=True):
            if delivery is deliveries[-1]:
                before_last()
            alone = self.publisher.wait_if_alone(message, lambda: None)
            self.publisher.send(message, delivery, alone=alone)
        before_wait()
        self.publisher.wait_for_answers()
        return [delivery.sent for delivery in deliveries if delivery.sent is not None]
