"""Table of failures: each row has a failure, the tests that cause it and the checker's findings in this run.

A test reports its findings through the fixture `found`. The table is printed at the end of a full run and of any run
with `--table`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.checker import Report

_PROPERTY = "found"


@dataclass(frozen=True)
class Row:
    """Failure, requirement, and the tests (parts of their ids) that cause it."""

    failure: str
    required: str
    tests: tuple[str, ...]


TABLE = (
    Row(
        "SIGKILL of the leader, at any point",
        "another leads at once; 0 duplicates, 0 lost",
        ("test_takeover.py::test_killed_leader", "test_burst.py::test_leader_killed", "test_burst.py::test_batch"),
    ),
    Row(
        "SIGSTOP past the lease, also in the middle of a burst, then SIGCONT",
        "enqueues nothing more, steps down, stays alive as a standby",
        ("test_takeover.py::test_leader_paused", "test_burst.py::test_leader_paused"),
    ),
    Row("SIGTERM in the middle of a dispatch", "whole or refused; handover", ("test_takeover.py::test_stopped",)),
    Row("reply lost after success", "the retry finds it done; one message", ("test_lost_reply.py",)),
    Row(
        "a command delayed past the lease, then delivered",
        "refused",
        ("test_partition.py::test_command_held", "test_guards.py"),
    ),
    Row(
        "Redis stopped and restarted with its data",
        "no process ends; no duplicate; recovery without manual steps",
        ("test_redis_outage.py", "test_state_loss.py::test_restart_with"),
    ),
    Row(
        "Redis restarted without its data or with old data, FLUSHALL, lease or ledger deleted, eviction",
        "noticed within a renewal; no duplicate; what is skipped has its verdict",
        (
            "test_state_loss.py::test_lost",
            "test_state_loss.py::test_positions",
            "test_state_loss.py::test_catch_up",
            "test_state_loss.py::test_evicted",
            "test_state_loss.py::test_deleted",
            "test_state_loss.py::test_restart_from_a",
            "test_last_moment.py",
        ),
    ),
    Row(
        "Redis full, read-only, loading",
        "the lease is kept or found again; nothing lost",
        (
            "test_state_loss.py::test_full_redis",
            "test_state_loss.py::test_read_only",
            "test_state_loss.py::test_loading",
        ),
    ),
    Row("Sentinel failover, synced and lagging", "as state loss, if anything was lost", ("test_sentinel_failover.py",)),
    Row(
        "failover whose old master lives on, cut off with a replica that leads there, min-replicas-to-write set",
        "what the old side enqueued until it stopped is not enqueued again",
        ("test_old_master.py",),
    ),
    Row(
        "leader cut from Redis, broker reachable; the reverse",
        "stops by itself inside its trust; the reverse hands over",
        (
            "test_partition.py::test_leader_cut",
            "test_partition.py::test_leader_that_cannot",
            "test_rabbitmq.py::test_a_broker_that",
        ),
    ),
    Row(
        "RabbitMQ stopped, frozen, cut off; the leader killed at each step of a dispatch",
        "one message at most under skip; each verdict as declared",
        ("test_rabbitmq.py",),
    ),
    Row("Redis slower than the lease", "at most one change per ttl", ("test_partition.py::test_redis_slower",)),
    Row(
        "main loop hung, renewal thread alive", "released within stall_timeout; another leads", ("test_hung_leader.py",)
    ),
    Row(
        "entries that take long to build, together or alone",
        "no change of leader, or one per replica; the others run meanwhile",
        ("test_slow_entries.py",),
    ),
    Row(
        "wall clock +-1 h on a replica; on Redis",
        "no change of leader, no duplicate, no silence",
        ("test_clocks.py::test_stepped",),
    ),
    Row("DST gap and overlap", "Celery's own semantics, once per occurrence", ("test_clocks.py::test_daylight",)),
    Row("fork after connect (worker -B)", "its own connections and identity", ("test_standbys.py::test_forked",)),
    Row("50 standbys", "one winner; few commands each", ("test_standbys.py::test_one_winner",)),
    Row("older config on a standby", "nothing of the leader's schedule is touched", ("test_rolling_deploy.py",)),
    Row("two apps with one cluster name", "refused, loudly", ("test_rolling_deploy.py::test_another_app",)),
    Row("1,000 entries due at takeover", "all enqueued, once, in order", ("test_burst.py",)),
    Row("occurrences found overdue", "by the misfire policy, each with its verdict", ("test_misfire.py",)),
    Row("any of these, at random", "no duplicate, nothing lost, every replica alive", ("test_storm.py",)),
)


def summary(report: Report) -> str:
    """Return the checker's findings in one line."""
    skipped = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items()) or "none"
    return (
        f"{report.occurrences} occurrences, {report.duplicates} duplicates, {report.missing} missing, "
        f"skipped: {skipped}; {report.changes_of_epoch} changes of leader"
    )


@pytest.fixture
def found(record_property: Callable[[str, object], None]) -> Callable[[Report | str], None]:
    """Return a function that adds a report, or a line, to the table of failures."""
    return lambda what: record_property(_PROPERTY, summary(what) if isinstance(what, Report) else what)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", action="store_true", help="print the table of failures")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (config.getoption("--table") or config.getoption("--full")):
        return
    ran = [
        (outcome, report)
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if hasattr(report, "nodeid") and "tests/faults/" in report.nodeid
    ]
    if not ran:
        return
    terminalreporter.section("table of failures")
    for row in TABLE:
        terminalreporter.write_line(f"{row.failure}: {row.required}")
        own = [(outcome, report) for outcome, report in ran if any(test in report.nodeid for test in row.tests)]
        for outcome, report in sorted(own, key=lambda one: one[1].nodeid):
            lines = [str(value) for name, value in report.user_properties if name in (_PROPERTY, "figure")]
            test = report.nodeid.partition("::")[2]
            terminalreporter.write_line(f"    {outcome:7} {test}: {'; '.join(lines) or '-'}")
        if not own:
            terminalreporter.write_line("    not in this run")
