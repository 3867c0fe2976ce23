"""Outcomes of a publish to SQS, with Amazon's own client and a fake service."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry

from ha_beat.clock import SystemClock
from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.publisher import Publisher
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome

pytest.importorskip("boto3")


class Sqs(ThreadingHTTPServer):
    """Service with the actions that a send needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sent: list[dict[str, Any]] = []
        #: HTTP status of the answer to a message; 0 to lose the answer.
        self.outcome = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, action: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match action:
            case "SendMessage":
                self.sent.append(asked)
                if self.outcome != 200:
                    return self.outcome, {"__type": "com.amazonaws.sqs#Refused", "message": "no"}
                return 200, {
                    "MessageId": "1",
                    "MD5OfMessageBody": hashlib.md5(asked["MessageBody"].encode()).hexdigest(),
                }
            case "GetQueueAttributes":
                return 200, {"Attributes": {"ApproximateNumberOfMessages": "0"}}
            case _:
                return 200, {"QueueUrl": f"http://127.0.0.1:{self.server_port}/1/jobs.fifo"}


class _Handler(BaseHTTPRequestHandler):
    # One request per connection, so that no connection outlives the service.
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        status, answer = server.answer(self.headers["X-Amz-Target"].rpartition(".")[2], asked)
        if not status:
            self.close_connection = True
            self.connection.close()
            return
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/x-amz-json-1.0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def sqs() -> Iterator[Sqs]:
    server = Sqs()
    yield server
    server.shutdown()
    server.server_close()


class Sender:
    """A publisher to the service."""

    def __init__(self, server: Sqs) -> None:
        self.app = Celery("desk", broker=f"sqs://key:secret@127.0.0.1:{server.server_port}//", set_as_current=False)
        self.app.conf.update(
            task_default_queue="jobs.fifo",
            broker_transport_options={
                "region": "us-east-1",
                "is_secure": False,
                "client-config": {"user_agent_extra": "shop", "retries": {"total_max_attempts": 4}},
            },
        )
        self.publisher = Publisher(self.app, 2.0, SystemClock())
        self.publisher.ready()

    def send(self) -> Sent:
        entry = ScheduleEntry(name="report", task="report", schedule=60, app=self.app)
        return self.publisher.send(self.publisher.prepare(entry, (), {}, {"task_id": "the id"}))


def test_deduplication_id_is_the_task_id(sqs: Sqs) -> None:
    """A FIFO queue drops a second publish."""
    assert Sender(sqs).send() == Sent(PublishOutcome.ACCEPTED)
    assert [message["MessageDeduplicationId"] for message in sqs.sent] == ["the id"]


def test_lost_answer_does_not_lead_to_a_second_publish(sqs: Sqs) -> None:
    """Amazon's client would retry by itself, and a standard queue would have each copy."""
    sender = Sender(sqs)
    sqs.outcome = 0
    sent = sender.send()
    assert (sent.outcome, sent.broken) == (PublishOutcome.UNKNOWN, True)
    assert len(sqs.sent) == 1


@pytest.mark.parametrize(("status", "outcome"), [(400, "refused"), (403, "refused"), (500, "unknown")])
def test_only_a_client_error_is_a_certain_refusal(sqs: Sqs, status: int, outcome: str) -> None:
    sender = Sender(sqs)
    sqs.outcome = status
    sent = sender.send()
    assert (sent.outcome, sent.broken) == (outcome, outcome == "unknown")
    assert len(sqs.sent) == 1


def test_refused_connection_certainly_sent_nothing(sqs: Sqs) -> None:
    sender = Sender(sqs)
    sender.send()
    sqs.shutdown()
    sqs.server_close()
    with pytest.raises(StoreUnavailable) as caught:
        sender.send()
    assert not caught.value.acted
