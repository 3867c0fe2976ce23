"""Batches that follow one another on a real Redis: each occurrence is enqueued once, whatever fails."""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from ha_beat.dispatch import Answer, Operation
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.headers import HEADER
from ha_beat.leader.planner import EVERYTHING, ScheduleChange
from ha_beat.reasons import MisfirePolicy
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.store.connections import link_to
from ha_beat.store.lease import Term
from tests.integration.leader.stepped_leader import Leader, ScriptDispatcher, Source
from tests.support.brokers import NoRecipes
from tests.support.dispatchers import push
from tests.support.entries import scheduled
from tests.support.servers import RedisServer

#: Entries, and steps of 0.1 s.
ENTRIES, STEPS = 18, 60


class SameRecipe(NoRecipes):
    def of(self, _: object) -> Any:
        return "task", "recipe"


class FailingDispatcher(ScriptDispatcher):
    """Dispatcher that does other work while a batch is under way. Some of its batches fail, in various ways."""

    def __init__(self, server: RedisServer, chance: random.Random) -> None:
        super().__init__(link_to(server.url, {}, 5.0, "key").client())
        self.recipes = SameRecipe()
        self.chance, self.fails, self.failed, self.submitted = chance, True, False, 0
        client: Any = self._link.client()
        before: list[Callable[[], object]] = [
            lambda: raising(StoreUnavailable("not connected", acted=False)),
            lambda: raising(StoreUnavailable("not arrived")),
            lambda: raising(StoreRefused("full")),
            server.admin.script_flush,
        ]
        meanwhile: list[Callable[[], object]] = [
            lambda: server.admin.client_kill_filter(skipme=True, _type="normal"),
            client.connection_pool.disconnect,
            lambda: raising(SystemExit()),
        ]
        after: list[Callable[[], object]] = [lambda: raising(StoreUnavailable("reply lost"))]
        self.faults = [*((fault, 0) for fault in before), *((fault, 1) for fault in meanwhile), (after[0], 2)]

    def prepare(self, _: Any, args: Sequence[Any], __: Any, options: Mapping[str, Any]) -> Any:
        return push(f"{args[0]} {options['headers'][HEADER]['scheduled_at']}")

    prepare_ahead = prepare

    def submit(self, term: Term, operations: Sequence[Operation], meanwhile: Any = None) -> list[Answer]:
        # Never twice in a row, because then the batch is split and its entries wait for long.
        self.failed = fails = self.fails and not self.failed and self.chance.random() < 0.15
        fault, when = self.chance.choice(self.faults) if fails else (lambda: None, 0)

        def work() -> None:
            if meanwhile is not None:
                meanwhile()
            if when == 1:
                fault()

        self.submitted += 1
        if when == 0:
            fault()
        answers = AtomicDispatcher.submit(self, term, operations, work)
        if when == 2:
            fault()
        return answers


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_while_a_batch_is_under_way_repeat_and_lose_nothing(shared_redis: RedisServer, seed: int):
    chance, leader = random.Random(seed), Leader(shared_redis)
    leader.dispatcher = dispatcher = FailingDispatcher(shared_redis, chance)
    began, rules = leader.source.now(), MisfireRules(MisfirePolicy.ALL, limit=1000)
    every = {f"e{number}": (0.2, 0.5, 0.7)[number % 3] for number in range(ENTRIES)}
    source = Source(lambda entry: scheduled(entry.id, every[entry.id], began, misfire=rules), **dict.fromkeys(every, 0))

    batches: list[int] = []  # of each turn

    def begin() -> None:
        """Begin as another process does after the previous one was stopped."""
        leader.lead("another")
        leader.use(source, batch_size=4, handover_after=1000.0)

    def turn() -> None:
        before = dispatcher.submitted
        try:
            leader.turn()
        except SystemExit:
            begin()
        batches.append(dispatcher.submitted - before)

    begin()
    for step in range(STEPS):
        leader.later(0.1)
        for _ in range(8):
            turn()
        if step % 20 == 7:
            leader.enqueuer.reload(
                ScheduleChange(frozenset(chance.sample(sorted(every), 4))) if step > 20 else EVERYTHING
            )
        if step % 25 == 12:
            leader.lead("another")
    dispatcher.fails = False
    for _ in range(20):
        # Send the entries that wait after a failure.
        leader.turn(after=0.5)
    leader.turn(after=0.05)  # past the instant of the last step, which may be rounded
    while not leader.idle:
        leader.turn()
    until = source.now()
    due = [
        f"{name} {(began + timedelta(seconds=seconds * run)).isoformat(timespec='microseconds')}"
        for name, seconds in every.items()
        for run in range(1, int(60 / seconds))
        if began + timedelta(seconds=seconds * run) <= until
    ]
    assert leader.messages == sorted(due)
    assert max(batches) > 2
