"""SQS: Amazon's own client, against a service that answers, loses answers, and is not there."""

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
    """As much of the service as a send asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sent: list[dict[str, Any]] = []
        #: What becomes of a message: an HTTP status, or 0 where the answer is lost.
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
    # One request for each connection, so that none outlives the service.
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

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


class Desk:
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


def test_the_deduplication_id_is_the_task_id(sqs: Sqs) -> None:
    """A FIFO queue drops a second sending by itself."""
    assert Desk(sqs).send() == Sent(PublishOutcome.ACCEPTED)
    assert [message["MessageDeduplicationId"] for message in sqs.sent] == ["the id"]


def test_a_lost_answer_is_not_made_up_for_by_sending_again(sqs: Sqs) -> None:
    """Amazon's client would, several times, whatever the policy of the entry: a standard queue has it as often."""
    desk = Desk(sqs)
    sqs.outcome = 0
    sent = desk.send()
    assert (sent.outcome, sent.broken) == (PublishOutcome.UNKNOWN, True)
    assert len(sqs.sent) == 1


@pytest.mark.parametrize(("status", "outcome"), [(400, "refused"), (403, "refused"), (500, "unknown")])
def test_a_refusal_is_certain_and_an_error_of_the_service_is_not(sqs: Sqs, status: int, outcome: str) -> None:
    desk = Desk(sqs)
    sqs.outcome = status
    sent = desk.send()
    assert (sent.outcome, sent.broken) == (outcome, outcome == "unknown")
    assert len(sqs.sent) == 1


def test_a_service_that_is_gone_has_not_got_the_message(sqs: Sqs) -> None:
    """Its connection is refused, at the one try that is made."""
    desk = Desk(sqs)
    desk.send()
    sqs.shutdown()
    sqs.server_close()
    with pytest.raises(StoreUnavailable) as caught:
        desk.send()
    assert not caught.value.acted
