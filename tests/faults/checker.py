"""Pure functions that check a history (see `history`) against the promises.

They compare the messages that the broker accepted with the schedule, and with the occurrences that the journal records
as skipped. They share no code with ha_beat.
"""

import itertools
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

Event: TypeAlias = Mapping[str, Any]

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Problem:
    """One defect that the history shows."""

    kind: str
    entry: str | None
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.entry or 'any entry'}: {self.detail}"


@dataclass(frozen=True)
class Skipped:
    """Occurrences of an entry from `first` to `last`, inclusive, that the journal records as skipped or uncertain.

    `count` is their number, or -1 if there were too many to count.
    """

    entry: str
    first: datetime
    last: datetime
    reason: str = ""
    verdict: str = "skipped"
    count: int = 1

    def covers(self, entry: str, instant: datetime) -> bool:
        return self.entry == entry and self.first <= instant <= self.last


@dataclass(frozen=True)
class Interval:
    """Entry due every `every` seconds, from its first message to its last, or to `until`."""

    entry: str
    every: float
    until: datetime | None = None


@dataclass(frozen=True)
class EveryMinute:
    """Crontab entry `* * * * *`, from its first message (or `since`) to its last (or `until`)."""

    entry: str
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Instants:
    """Entry of which exactly these occurrences are expected."""

    entry: str
    instants: tuple[datetime, ...]


@dataclass(frozen=True)
class StockTask:
    """Task that one stock beat sends every `every` seconds. Its messages name no entry."""

    task: str
    every: float


Expectation: TypeAlias = Interval | EveryMinute | Instants | StockTask


# ------------------------------------------------------------------------------------------------- extracting


def messages_of(history: Iterable[Event]) -> list[Event]:
    """Return the messages of a history, in order of arrival."""
    return [event for event in history if event.get("type") == "message"]


def instant(text: str) -> datetime:
    """Return a `scheduled_at` as a datetime in UTC. Raises ValueError if it has no offset."""
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(f"scheduled_at without an offset: {text!r}")
    return value.astimezone(UTC)


def skipped_from_journal(records: Iterable[Event]) -> list[Skipped]:
    """Return the skipped and uncertain occurrences among the records of a journal."""
    found = []
    for record in records:
        if record.get("verdict") in ("skipped", "uncertain"):
            first = instant(record.get("at") or record["from"])
            last = instant(record["until"]) - timedelta(microseconds=1) if "until" in record else first
            reason, count = record.get("why", ""), record.get("count", 1)
            found.append(Skipped(record["entry"], first, last, reason, record["verdict"], count))
    return found


def _by_entry(messages: Iterable[Event]) -> dict[str, list[Event]]:
    entries: dict[str, list[Event]] = defaultdict(list)
    for message in messages:
        if message.get("entry") is not None and message.get("scheduled_at") is not None:
            entries[str(message["entry"])].append(message)
    return entries


# ----------------------------------------------------------------------------------------------- each promise


def duplicates_by_occurrence(messages: Iterable[Event]) -> list[Problem]:
    """Return occurrences `(cluster, entry, scheduled_at)` with several messages; compares instants, not text."""
    arrivals: dict[tuple[Any, str, datetime], list[Event]] = defaultdict(list)
    for entry, own in _by_entry(messages).items():
        for message in own:
            arrivals[message.get("cluster"), entry, instant(message["scheduled_at"])].append(message)
    problems = []
    for (_, entry, due), own in arrivals.items():
        if len(own) > 1:
            times = ", ".join(f"{message['t']:.3f} (epoch {message.get('epoch')})" for message in own)
            detail = f"{due.isoformat()} arrived {len(own)} times, at t={times}"
            problems.append(Problem("duplicate", entry, detail))
    return problems


def duplicates_by_id(messages: Iterable[Event]) -> list[Problem]:
    """Return task ids of several messages."""
    own: dict[str, list[Event]] = defaultdict(list)
    for message in messages:
        if message.get("id") is not None:
            own[str(message["id"])].append(message)
    return [
        Problem("duplicate id", same[0].get("entry"), f"{task_id} arrived {len(same)} times")
        for task_id, same in own.items()
        if len(same) > 1
    ]


def epoch_falls(messages: Iterable[Event]) -> list[Problem]:
    """Return messages whose epoch is lower than that of an earlier message of the entry."""
    problems = []
    for entry, own in _by_entry(messages).items():
        highest = 0
        for message in own:
            due, epoch = message["scheduled_at"], message.get("epoch")
            if epoch is None:
                problems.append(Problem("no epoch", entry, f"{due} bears no epoch"))
            elif int(epoch) < highest:
                problems.append(Problem("epoch fell", entry, f"{due} of epoch {epoch} arrived after one of {highest}"))
            highest = max(highest, int(epoch or 0))
    return problems


def order_breaks(messages: Iterable[Event]) -> list[Problem]:
    """Return messages that arrived after one of the same entry that was due later."""
    problems = []
    for entry, own in _by_entry(messages).items():
        dues = [instant(message["scheduled_at"]) for message in own]
        for due, latest in zip(dues, itertools.accumulate(dues, max), strict=True):
            if due < latest:
                detail = f"{due.isoformat()} arrived after {latest.isoformat()}"
                problems.append(Problem("out of order", entry, detail))
    return problems


def run_count_breaks(messages: Iterable[Event]) -> list[Problem]:
    """Return messages whose run count is not one more than that of the entry's previous message.

    Only for runs in which Redis keeps the ledger, and the outcome of each message is known.
    """
    problems = []
    for entry, own in _by_entry(messages).items():
        for before, after in itertools.pairwise(own):
            if after["run_count"] != before["run_count"] + 1:
                detail = f"{after['scheduled_at']}: run {after['run_count']} after run {before['run_count']}"
                problems.append(Problem("run count", entry, detail))
    return problems


def _occurrences(messages: Iterable[Event], entry: str) -> list[datetime]:
    return sorted({instant(message["scheduled_at"]) for message in _by_entry(messages).get(entry, [])})


def _missing(entry: str, due: Iterable[datetime], skipped: Sequence[Skipped]) -> list[Problem]:
    """Return a problem for each of these instants without a verdict."""
    return [
        Problem("missing", entry, f"{moment.isoformat()} has neither message nor verdict")
        for moment in due
        if not any(verdict.covers(entry, moment) for verdict in skipped)
    ]


def missing_of_interval(
    messages: Iterable[Event], expected: Interval, skipped: Sequence[Skipped] = ()
) -> list[Problem]:
    """Return instants of the grid with neither message nor verdict, and messages that are off the grid.

    A new grid may start only after a gap that is completely covered by verdicts.
    """
    entry, every = expected.entry, timedelta(seconds=expected.every)
    due = _occurrences(messages, entry)
    if not due:
        return [Problem("missing", entry, "not one message")]
    problems: list[Problem] = []
    for before, after in itertools.pairwise(due):
        steps, rest = divmod(after - before, every)
        lost = [before + number * every for number in range(1, steps + bool(rest))]
        uncovered = _missing(entry, lost, skipped)
        problems += uncovered
        if rest and (uncovered or not lost):
            problems.append(Problem("off the grid", entry, f"{after.isoformat()} follows {before.isoformat()}"))
    if expected.until is not None:
        problems += _missing(entry, _grid(due[-1] + every, every, expected.until), skipped)
    return problems


def _grid(first: datetime, every: timedelta, last: datetime) -> list[datetime]:
    """Return the instants from `first` to `last`, inclusive."""
    return [first + number * every for number in range((last - first) // every + 1)]


def missing_of_minutes(
    messages: Iterable[Event], expected: EveryMinute, skipped: Sequence[Skipped] = ()
) -> list[Problem]:
    """Return minutes without message and verdict, and instants that are not a whole minute."""
    due = _occurrences(messages, expected.entry)
    first = expected.since or (due[0] if due else None)
    last = expected.until or (due[-1] if due else None)
    if first is None or last is None:
        return [Problem("missing", expected.entry, "not one message")]
    problems = [
        Problem("off the grid", expected.entry, f"{moment.isoformat()} is no whole minute")
        for moment in due
        if moment.second or moment.microsecond
    ]
    whole = first.replace(second=0, microsecond=0)
    if whole < first:
        whole += MINUTE
    minutes = Instants(expected.entry, tuple(_grid(whole, MINUTE, last)))
    return problems + missing_of_instants(messages, minutes, skipped)


def missing_of_instants(
    messages: Iterable[Event], expected: Instants, skipped: Sequence[Skipped] = ()
) -> list[Problem]:
    """Return expected instants with neither message nor verdict."""
    due = set(_occurrences(messages, expected.entry))
    return _missing(expected.entry, (moment for moment in expected.instants if moment not in due), skipped)


def unexpected_instants(messages: Iterable[Event], expected: Instants) -> list[Problem]:
    """Return messages for instants that are not expected."""
    return [
        Problem("unexpected", expected.entry, f"{moment.isoformat()} was never due")
        for moment in _occurrences(messages, expected.entry)
        if moment not in expected.instants
    ]


def skipped_yet_sent(messages: Iterable[Event], skipped: Sequence[Skipped]) -> list[Problem]:
    """Return occurrences with a message that are also recorded as skipped.

    A loss of state only records that they will not be sent again, so it does not count.
    """
    return [
        Problem("two verdicts", entry, f"{moment.isoformat()} arrived and is recorded as skipped ({verdict.reason})")
        for entry, own in _by_entry(messages).items()
        for moment in sorted({instant(message["scheduled_at"]) for message in own})
        for verdict in skipped
        if verdict.verdict == "skipped" and verdict.reason != "state_loss" and verdict.covers(entry, moment)
    ]


def skipped_twice(skipped: Sequence[Skipped]) -> list[Problem]:
    """Return occurrences that two records mark as skipped."""
    problems = []
    latest: dict[str, Skipped] = {}
    for verdict in sorted(skipped, key=lambda one: one.first):
        if verdict.verdict != "skipped":
            continue
        before = latest.get(verdict.entry)
        if before is not None and verdict.first <= before.last:
            detail = f"{verdict.first.isoformat()} skipped as {before.reason!r} and again as {verdict.reason!r}"
            problems.append(Problem("two verdicts", verdict.entry, detail))
        if before is None or verdict.last > before.last:
            latest[verdict.entry] = verdict
    return problems


def crowding(messages: Iterable[Event], expected: StockTask) -> list[Problem]:
    """Return a problem if there are more messages than one stock beat sends in the time that they span."""
    task = expected.task
    times = sorted(message["t"] for message in messages if message.get("task") == task and message.get("entry") is None)
    if not times:
        return [Problem("missing", task, "not one message")]
    span = times[-1] - times[0]
    most = int(span / expected.every) + 2  # one for the ends of the span, one for jitter
    if len(times) <= most:
        return []
    return [Problem("duplicate", task, f"{len(times)} messages in {span:.2f} s; one beat sends {most} at most")]


# ---------------------------------------------------------------------------------------------------- silence


@dataclass(frozen=True)
class Silence:
    """Gaps between consecutive messages, in seconds: count, median and longest."""

    gaps: int
    p50: float
    longest: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.3f} s, max {self.longest:.3f} s, of {self.gaps}"


def _silence(gaps: Sequence[float]) -> Silence:
    return Silence(len(gaps), statistics.median(gaps), max(gaps)) if gaps else Silence(0, 0.0, 0.0)


def silence(messages: Iterable[Event]) -> Silence:
    """Return the gaps between consecutive arrivals."""
    return _silence([after["t"] - before["t"] for before, after in itertools.pairwise(messages)])


def silence_around(history: Iterable[Event], fault: str) -> Silence:
    """Return the gap around each fault of this name; faults with no message on one side are ignored.

    The gap lies between the old leader's last message, which may arrive after the fault has begun, and the next
    leader's first one before another fault. If the leader stays, the gap is between the messages around the fault.
    """
    events = sorted(history, key=lambda event: float(event["t"]))
    messages = messages_of(events)
    times = [message["t"] for message in messages]
    starts = [e for e in events if e.get("type") == "fault" and e.get("phase") != "end"]
    gaps = []
    for start, following in itertools.zip_longest(starts, starts[1:]):
        first = bisect_right(times, start["t"])
        if start["fault"] != fault or not 0 < first < len(messages):
            continue
        end = bisect_right(times, following["t"]) if following is not None else len(messages)
        before = messages[first - 1].get("epoch")
        others = (number for number in range(first, end) if messages[number].get("epoch") != before)
        after = next(others, first)
        gaps.append(times[after] - times[after - 1])
    return _silence(gaps)


# ----------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Report:
    """Findings of the checker. `skipped` counts occurrences by the reason of their verdict."""

    messages: int
    entries: int
    occurrences: int
    skipped: Mapping[str, int]
    changes_of_epoch: int
    faults: Mapping[str, int]
    silence: Silence
    silence_by_fault: Mapping[str, Silence]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def kinds(self) -> Counter[str]:
        """Return the number of problems of each kind."""
        return Counter(problem.kind for problem in self.problems)

    @property
    def duplicates(self) -> int:
        return self.kinds["duplicate"]

    @property
    def missing(self) -> int:
        return self.kinds["missing"]

    @property
    def summary(self) -> str:
        """Return the findings in one line."""
        return (
            f"{self.occurrences} occurrences, {self.duplicates} duplicates, {self.missing} missing, "
            f"skipped: {_counts(self.skipped)}; {self.changes_of_epoch} changes of leader"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.messages} messages of {self.entries} entries: {self.summary}",
            f"problems: {_counts(self.kinds)}",
            f"faults: {_counts(self.faults)}",
            f"silence: {self.silence}",
            *(f"  at {name}: {silent}" for name, silent in self.silence_by_fault.items()),
            *(f"  {problem}" for problem in self.problems[:20]),
        ]
        more = len(self.problems) - 20
        return "\n".join([*lines, f"  ... and {more} more"] if more > 0 else lines)


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items()) or "none"


INVARIANTS = (duplicates_by_occurrence, duplicates_by_id, epoch_falls, order_breaks)


def check(history: Iterable[Event], expected: Iterable[Expectation] = (), skipped: Sequence[Skipped] = ()) -> Report:
    """Check a history against the invariants and the expected schedule."""
    events = list(history)
    messages = messages_of(events)
    problems = [problem for invariant in INVARIANTS for problem in invariant(messages)]
    problems += skipped_yet_sent(messages, skipped) + skipped_twice(skipped)
    for expectation in expected:
        match expectation:
            case StockTask():
                problems += crowding(messages, expectation)
            case Interval():
                problems += missing_of_interval(messages, expectation, skipped)
            case EveryMinute():
                problems += missing_of_minutes(messages, expectation, skipped)
            case Instants():
                problems += missing_of_instants(messages, expectation, skipped)
                problems += unexpected_instants(messages, expectation)
    entries = _by_entry(messages)
    epochs = [message["epoch"] for message in messages if message.get("epoch") is not None]
    verdicts: Counter[str] = Counter()
    for verdict in skipped:
        verdicts[verdict.reason or verdict.verdict] += max(verdict.count, 1)
    faults = Counter(str(e["fault"]) for e in events if e.get("type") == "fault" and e.get("phase") != "end")
    return Report(
        messages=len(messages),
        entries=len(entries),
        occurrences=sum(len({instant(message["scheduled_at"]) for message in own}) for own in entries.values()),
        skipped=verdicts,
        changes_of_epoch=sum(before != after for before, after in itertools.pairwise(epochs)),
        faults=faults,
        silence=silence(messages),
        silence_by_fault={name: silence_around(events, name) for name in faults},
        problems=tuple(problems),
    )
