"""Requests that take long, hang, or end their leader: a backfill in steps, slow arguments, and messages built once."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from ha_beat.dispatch.messages.build import Declined
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import ReplyCode, RequestKind
from ha_beat.store.request_queue import Request
from tests.integration.leader.request_leader import KEYS, RequestLeader, Sender
from tests.support.entries import scheduled, state_of
from tests.support.servers import RedisServer, wait_for


@pytest.fixture
def leader(shared_redis: RedisServer) -> RequestLeader:
    return RequestLeader(shared_redis)


class Killed(SystemExit):
    """End of the process."""


def test_request_in_which_leaders_end_is_rejected(leader: RequestLeader):
    """A request must not end one leader after the other."""
    tries: list[str] = []

    def prepare(*_: object) -> Any:
        tries.append(leader.term.nonce)
        raise Killed

    leader.stub.dispatcher.prepare = prepare
    run = leader.post(RequestKind.RUN, entry="e")
    for nonce in ("first", "second", "third"):
        leader.lead(nonce)
        with pytest.raises(Killed):
            leader.attend()
    leader.lead("fourth")
    pause = leader.post(RequestKind.PAUSE)
    leader.attend()
    assert leader.reply_to(run).code is ReplyCode.ENDED_TERMS
    assert leader.reply_to(pause).code is ReplyCode.PAUSED
    assert tries == ["first", "second", "third"]


def test_request_that_waits_for_the_broker_is_not_rejected(leader: RequestLeader):
    run = leader.post(RequestKind.RUN, entry="e")
    for nonce in ("first", "second", "third", "fourth"):
        leader.lead(nonce)
        leader.attend()
    assert leader.stub.dispatcher.tries == 4
    assert leader.reply_to(run) is None


def begin_backfill(leader: RequestLeader, minutes: int, **args: Any) -> Request:
    """Post a backfill of skipped instants. A page of the journal takes 1 s, and ten messages take 0.5 s."""
    until = leader.stub.now().replace(microsecond=0)
    since = until - timedelta(minutes=minutes)
    state = state_of(scheduled("e", every=60, last_run=until))
    leader.stub.due_queue.put(state, until + timedelta(hours=1))
    read = leader.client.xrevrange

    def read_slowly(*args: Any, **options: Any) -> Any:
        leader.clock.ahead += 1.0
        return read(*args, **options)

    leader.client.xrevrange = read_slowly
    skipped = {"verdict": "skipped", "entry": "e", "from": since.isoformat(), "until": until.isoformat(), "count": -1}
    pipe = leader.client.pipeline()
    for n in range(2001):
        pipe.xadd(KEYS.journal, {"n": n + 1, "d": json.dumps({**skipped, "entry": f"other {n}" if n else "e"})})
    pipe.execute()
    arguments = {name: round(at.timestamp() * 1_000_000) for name, at in (("from", since), ("to", until))}
    return leader.post(RequestKind.BACKFILL, entry="e", **arguments, **args)


def outcomes_of(leader: RequestLeader, backfill: Request) -> Counter[str]:
    return Counter(each["outcome"] for each in leader.reply_to(backfill).data["instants"])


def test_backfill_works_in_steps_while_other_requests_are_answered(leader: RequestLeader):
    """The search of a large journal must not hold up the schedule either."""
    leader.stub.dispatcher = Sender(leader)
    backfill = begin_backfill(leader, 120)
    time.sleep(0.005)  # requests of one millisecond have no order
    second = leader.post(RequestKind.BACKFILL, **backfill.args)
    assert leader.attend() == 0.0
    turns = 1
    while leader.reply_to(backfill) is None:
        report = leader.post(RequestKind.REPORT)
        assert leader.attend(requests_pending=False) == 0.0
        assert leader.reply_to(report).code is ReplyCode.REPORT
        turns += 1
    assert turns > 15
    assert leader.reply_to(backfill).data["count"] == leader.sent == 120
    while leader.attend(requests_pending=False) == 0.0:
        pass
    assert leader.reply_to(second).data["count"] == 0
    assert leader.sent == 120


def test_backfill_goes_on_after_a_message_that_cannot_be_built(leader: RequestLeader):
    """The task declines each third message, and fails for each fifth."""

    def fail(number: int) -> None:
        if number % 3 == 0:
            raise Declined("task")
        if number % 5 == 0:
            raise ValueError("unable")

    leader.stub.dispatcher = Sender(leader)
    leader.stub.dispatcher.on_build = fail
    backfill = begin_backfill(leader, 15)
    while leader.reply_to(backfill) is None:
        leader.attend()
    assert outcomes_of(leader, backfill) == {"enqueued": 8, "declined": 5, "not_sent": 2}
    assert leader.sent == 8


@pytest.mark.parametrize("ends", [True, False], ids=["slow", "hung"])
def test_arguments_of_a_request_do_not_hold_up_the_leader(leader: RequestLeader, ends: bool):
    """A thread computes them. After a minute the request is refused."""
    released = threading.Event()
    leader.stub.dispatcher = Sender(leader)
    leader.stub.compute = lambda: released.wait(30.0)
    run, began = leader.post(RequestKind.RUN, entry="e"), time.monotonic()
    assert leader.attend() > 0
    assert leader.carry_out(RequestKind.REPORT).code is ReplyCode.REPORT
    assert leader.reply_to(run) is None
    assert time.monotonic() - began < 5.0
    if ends:
        released.set()
        wait_for(lambda: leader.attend() and leader.reply_to(run), 10, "the answer")
        assert leader.reply_to(run).code is ReplyCode.SENT
        assert leader.sent == 1
    else:
        leader.clock.ahead += 60.0
        leader.attend()
        assert leader.reply_to(run).code is ReplyCode.NOT_SENT
    released.set()


def test_backfill_with_hung_arguments_reports_its_sent_messages(leader: RequestLeader):
    released, calls = threading.Event(), []
    leader.stub.dispatcher = Sender(leader)

    def compute() -> None:
        calls.append(None)
        if len(calls) == 2:
            released.wait(30.0)

    leader.stub.compute = compute
    backfill = begin_backfill(leader, 3)
    while leader.reply_to(backfill) is None:
        leader.clock.ahead += 10.0
        leader.attend()
    released.set()
    assert leader.sent == 1
    assert outcomes_of(leader, backfill) == {"enqueued": 1, "not_sent": 2}


def test_withdrawn_backfill_stops(leader: RequestLeader):
    leader.stub.dispatcher = Sender(leader)
    backfill = begin_backfill(leader, 120)
    while leader.sent == 0:
        assert leader.attend() == 0.0
    leader.requests.withdraw(backfill.id)
    sent = leader.sent
    assert leader.attend() > 0
    assert leader.sent == sent < 120


def decline_second(number: int) -> None:
    """Decline as a task with a lock does, which its first message has taken."""
    if number > 1:
        raise Declined("task")


def raising_once(error: Exception) -> Callable[[], None]:
    errors = [error]

    def fail() -> None:
        if errors:
            raise errors.pop()

    return fail


def test_message_of_a_request_is_built_once(leader: RequestLeader):
    """A task with a lock would find its own, and the request would fail although its message was sent."""
    sender = leader.stub.dispatcher = Sender(leader)
    sender.on_build, sender.after_send = decline_second, raising_once(StoreUnavailable("the reply was lost"))
    run = leader.post(RequestKind.RUN, entry="e")
    for _ in range(3):
        leader.attend()
    assert leader.reply_to(run).code is ReplyCode.SENT
    assert leader.sent == 1


def test_message_that_was_begun_in_an_earlier_term_is_not_sent_again(leader: RequestLeader):
    sender = leader.stub.dispatcher = Sender(leader)
    sender.after_send = raising_once(StoreUnavailable("the reply was lost"))
    run = leader.post(RequestKind.RUN, entry="e")
    leader.attend()
    leader.lead("another")
    leader.attend()
    assert leader.reply_to(run).code is ReplyCode.SENT_EARLIER
    assert leader.sent == 1


def test_backfill_is_completed_after_a_lost_reply(leader: RequestLeader):
    sender = leader.stub.dispatcher = Sender(leader)
    sender.after_send = raising_once(StoreUnavailable("the reply was lost"))
    # The journal is trimmed while the messages are sent.
    backfill = begin_backfill(leader, 15, force=True)
    for _ in range(20):
        leader.attend()
    assert leader.reply_to(backfill).code is ReplyCode.BACKFILLED
    assert leader.sent == 15


@pytest.mark.parametrize("locked", [True, False])
def test_requested_message_with_an_expiry_is_built_again(leader: RequestLeader, locked: bool):
    """The expiry counts from the build. If the task declines because of its own lock, the first message is sent."""
    sender = leader.stub.dispatcher = Sender(leader)
    sender.timed, sender.before_send = True, raising_once(StoreUnavailable("away", acted=False))
    if locked:
        sender.on_build = decline_second
    run = leader.post(RequestKind.RUN, entry="e")
    wait_for(lambda: leader.attend() and leader.reply_to(run), 10, "the answer")
    assert leader.client.lrange("queue", 0, -1) == [b"1" if locked else b"2"]
