"""Outcomes of a publish to SQS, with Amazon's client and a fake service."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ha_beat.dispatch.brokers.adapter import Sent
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome
from tests.support.senders import TASK_ID, Sender

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
                digest = hashlib.md5(asked["MessageBody"].encode()).hexdigest()
                return 200, {"MessageId": "1", "MD5OfMessageBody": digest}
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


@pytest.fixture
def sender(sqs: Sqs) -> Sender:
    client = {"user_agent_extra": "shop", "retries": {"total_max_attempts": 4}}
    options = {"region": "us-east-1", "is_secure": False, "client-config": client}
    made = Sender(f"sqs://key:secret@127.0.0.1:{sqs.server_port}//", 2.0, broker_transport_options=options)
    made.publisher.ready()
    return made


def test_deduplication_id_is_the_task_id(sqs: Sqs, sender: Sender):
    """A FIFO queue drops a second publish."""
    assert sender.send() == Sent(PublishOutcome.ACCEPTED)
    assert [message["MessageDeduplicationId"] for message in sqs.sent] == [TASK_ID]


@pytest.mark.parametrize(("status", "outcome"), [(0, "unknown"), (400, "refused"), (403, "refused"), (500, "unknown")])
def test_only_a_client_error_is_a_certain_refusal(sqs: Sqs, sender: Sender, status: int, outcome: str):
    """Amazon's client must not retry, because a standard queue keeps each copy."""
    sqs.outcome = status
    sent = sender.send()
    assert (sent.outcome, sent.broken) == (outcome, outcome == "unknown")
    assert len(sqs.sent) == 1


def test_refused_connection_certainly_sent_nothing(sqs: Sqs, sender: Sender):
    sender.send()
    sqs.shutdown()
    sqs.server_close()
    with pytest.raises(StoreUnavailable) as caught:
        sender.send()
    assert not caught.value.acted
