"""Least rights of a Redis user: those of docs/redis.md are enough, and each missing right is named."""

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ha_beat
from ha_beat.reasons import TermEnd
from tests.faults.cluster import BeatCluster, base_environment
from tests.integration.cli.test_commands import app_for, invoke
from tests.integration.docs.blocks import blocks
from tests.integration.topologies.replica import KEYS, Campaigner, before_7, cluster_url, do, link
from tests.support.servers import RedisServer, ServerProcess, need, wait_for


def documented() -> list[list[str]]:
    """Return the rules of each `ACL SETUSER` in the docs, in their order, without user and password."""
    lines = [line for block in blocks("acl") for line in block.commands()]
    return [re.sub(r"^ACL SETUSER \w+ (on >secret )?", "", line).split() for line in lines]


#: In this order: redbeat's Redis; lease, ledger and command line; the broker, if it is the same Redis; a broker that is
#: another Redis; a Redis Cluster; a worker with the guard.
REDBEAT, LEASE, BROKER, OTHER_BROKER, CLUSTER, GUARD = documented()

#: Rights of a worker without the guard.
CELERY_WORKER = ["resetkeys", "allchannels", "+@all", "~celery*", "~unacked*", "~_kombu.*", "~*.pidbox*"]

#: Optional: without these a feature is missing.
OPTIONAL = {"+info", "+type", "+pubsub|numsub", "+publish", "+subscribe", "+xadd", "+xtrim", "+xrevrange"}

#: Needed occasionally: for requests of the command line, removed entries, large schedules, and undoing a declaration.
ON_REQUEST = {"+hlen", "+get", "+set", "+hdel", "+hsetnx", "+xlen", "+hexists", "+hincrby", "+ping", "+hscan"}


#: redis-py sets its library name; Redis before 7 does not name the refused subcommand.
OF_THE_CLIENT = {"command client|setinfo", "command client"}


def allow(server: RedisServer, *rules: str, user: str = "beat") -> str:
    """Create the user; return its URL."""
    do(server, "ACL SETUSER", user, "on", ">pw", *rules)
    return f"redis://{user}:pw@127.0.0.1:{server.port}/0"


def denied(server: RedisServer) -> set[str]:
    return {f"{entry['reason']} {entry['object']}" for entry in do(server, "ACL LOG")}


def used_commands(folder: Path) -> set[str]:
    """Return the rights that the scripts of a folder need."""
    used = set()
    for path in folder.glob("*.lua"):
        source = path.read_text("utf-8")
        for command, sub in re.findall(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?", source):
            container = command in ("PUBSUB", "SCRIPT", "CLIENT")
            used.add(f"+{command}|{sub}".lower() if container and sub else f"+{command}".lower())
    return used - {"+pubsub"}


def test_scripts_use_no_other_commands() -> None:
    """A command that is added to a script must be added to the rights."""
    used = used_commands(Path(ha_beat.__file__).parent / "store" / "lua")
    assert used - set(LEASE) - set(BROKER) - set(CLUSTER) == set()


#: Every command of the command line that reaches Redis.
COMMANDS = (
    *("status", "check", "history", "next", "doctor", "run fast", "pause", "resume", "step-down"),
    *("backfill fast --from 2026-01-01 --to 2026-01-01T00:00:01 --force", "history fast"),
)


@contextmanager
def worker(broker: str, lease: str) -> Iterator[ServerProcess]:
    """Worker with the guard."""
    env = base_environment({"BROKER_URL": broker, "HA_BEAT_REDIS_URL": lease, "HA_BEAT_CLUSTER": "tick"})
    env["GUARD"] = "1"
    command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "worker", "--pool", "solo"]
    with tempfile.TemporaryDirectory() as folder:
        process = ServerProcess([*command, "-l", "INFO"], Path(folder) / "log", env=env)
        try:
            yield process
        finally:
            process.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one Redis", "a lease of its own"])
def test_documented_rights_are_enough(server: RedisServer, kind: str) -> None:
    """Takeover, dispatch, standby, handover, every command and a worker with the guard: nothing is refused."""
    with need(RedisServer) as other:
        if kind == "one Redis":
            url, lease, queue = allow(server, *LEASE, *BROKER), None, server
        else:
            url, lease, queue = allow(other, *OTHER_BROKER), allow(server, *LEASE), other
        options: Any = {"lease_urls": lease, "admin_url": server.url, "settings": {"lease_ttl": 3}}
        with BeatCluster(url, spec={"fast": {"every": 0.2}}, replicas=2, **options) as cluster:
            wait_for(lambda: queue.admin.llen("celery") > 3, 30, "messages")
            wait_for(lambda: cluster.lease().get("presence"), 30, "presence")
            leader = cluster.wait_for_leader()
            time.sleep(2.5)
            leader.kill()
            successor = cluster.wait_for_leader(other_than=leader)
            seen = leader.log_text().count("action=leader_seen")
            leader.start().wait_for_log("action=leader_seen", count=seen + 1)  # before the command step-down
            app = app_for(url, **({"ha_beat_redis_url": lease} if lease else {}))
            for command in COMMANDS:
                result = invoke(app, *command.split())
                assert result.exit_code == 0, f"{command}: {result.output}"
            cluster.wait_for_leader(other_than=successor)
            of_worker = allow(queue, *CELERY_WORKER, user="worker")
            of_guard = allow(server, *GUARD, user="worker")
            before = queue.admin.llen("celery")
            with worker(of_worker, of_guard) as process:
                wait_for(lambda: process.log_text().count("succeeded in") > before, 30, "runs of the backlog")
                assert "action=guard_failed" not in process.log_text()
            assert denied(server) - OF_THE_CLIENT == set()
            assert denied(other) - OF_THE_CLIENT == set()
            assert not any("duty=mark_lease" in beat.log_text() for beat in cluster)


def test_the_least_rights_in_a_cluster(redis_cluster: Any) -> None:
    nodes = redis_cluster.nodes
    for node in nodes:
        allow(node, *LEASE, *CLUSTER)
    with Campaigner(link(cluster_url(redis_cluster, "beat:pw@"))) as replica:
        replica.wait_to_lead()
        assert set().union(*(denied(node) for node in nodes)) - OF_THE_CLIENT == set()


@pytest.mark.parametrize("right", ["+info", "+pubsub|numsub", "+publish", "+subscribe"])
def test_lease_works_without_optional_rights(server: RedisServer, right: str) -> None:
    """Without them there is no check of the server's identity, no presence and no wake; the lease works by its ttl."""
    # Redis before 7 takes back whole commands.
    url = allow(server, *LEASE, f"-{right[1:].partition('|')[0] if before_7(server) else right[1:]}")
    with Campaigner(link(url), name="first") as first:
        wait_for(lambda: first.elector.handle.term, 30, "to lead")
        if right == "+subscribe":
            first.wait_for_line("duty_late", "lacks a right (NOPERM", "subscribe")
        time.sleep(1.0)
        assert first.told("lease_unreachable") == 0, first.lines
        with Campaigner(link(url), name="second") as second:
            second.wait_for_line("leader_seen")
            first.elector.handle.step_down(TermEnd.STEP_DOWN)
            wait_for(lambda: second.elector.handle.term, 30, "the second to lead")
            assert second.told("lease_unreachable") == 0, second.lines


@pytest.mark.slow
def test_each_missing_right_is_named(server: RedisServer) -> None:
    """Each right is revoked from running replicas: one names it, none exits, all continue once it is restored."""
    rights = [*LEASE, *BROKER]
    url = allow(server, *rights)
    commands = [rule for rule in rights if rule.startswith("+") and rule not in OPTIONAL | ON_REQUEST]
    # Kombu declares a queue once for each connection.
    commands = [rule for rule in commands if rule not in ("+multi", "+exec", "+llen", "+sadd", "+script|load")]
    settings = {"lease_ttl": 1, "publish_deadline": "none"}
    unnamed = []
    spec = {"fast": {"every": 0.2}}
    with BeatCluster(url, spec=spec, replicas=2, settings=settings, admin_url=server.url) as cluster:

        def texts() -> list[str]:
            return [beat.log_text() for beat in cluster]

        cluster.wait_until_up()
        for rule in commands:
            before = server.admin.llen("celery")
            wait_for(lambda at=before: server.admin.llen("celery") > at, 30, f"messages before {rule}")
            starts, name = [len(text) for text in texts()], rule[1:].partition("|")[0]
            do(server, "ACL SETUSER", "beat", f"-{rule[1:]}")
            named = re.compile(rf"(NOPERM|can't run this command|ACL failure).*\b{name}\b", re.IGNORECASE)

            def told(since: list[int] = starts, line: re.Pattern[str] = named) -> bool:
                return any(line.search(text[at:]) for text, at in zip(texts(), since, strict=True))

            try:
                wait_for(told, 10)
            except AssertionError:
                unnamed.append(rule)
            do(server, "ACL SETUSER", "beat", rule)
            cluster.assert_all_alive()
        assert unnamed == []


@pytest.mark.parametrize("rule", ["~{ha-beat:*}:*", "&{ha-beat:*}:*"])
def test_keys_and_channels_that_may_not_be_touched(server: RedisServer, rule: str) -> None:
    url = allow(server, *[right for right in LEASE if right != rule])
    with Campaigner(link(url)) as replica:
        what = "lease_unreachable" if rule.startswith("~") else "duty_late"
        replica.wait_for_line(what, "lacks a right (NOPERM")
        allow(server, rule)
        wait_for(lambda: replica.elector.handle.term and replica.registered, 30, "to lead, present")


def test_keys_have_the_pattern_that_the_rights_name() -> None:
    for key in (KEYS.lease, KEYS.ledger, KEYS.journal, KEYS.members, KEYS.claims, KEYS.requests, KEYS.answer("x")):
        assert re.fullmatch(r"\{ha-beat:.*\}:.*", key)
