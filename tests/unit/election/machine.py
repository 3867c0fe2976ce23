"""Looks at the lease, outcomes and states. Instants are in seconds; the ttl is 10 s with a margin of 1 s."""

from dataclasses import replace
from typing import Any

from ha_beat.election import state_machine
from ha_beat.election.state_machine import decide
from ha_beat.election.states import (
    Campaign,
    Campaigned,
    Fitness,
    Leader,
    Renewal,
    Standby,
    Timing,
)
from ha_beat.store.lease import Acquired, LeaseRecord, LeaseView, Renewed, Term

TIMING = Timing(ttl=10.0, renew_interval=2.5, poll_interval=0.1, stall_timeout=15.0)
FIT = Fitness()
OURS = Term("we", epoch=7, nonce="ours", gen="g", run_id="r", trusted_until=109.0)
THEIRS = LeaseRecord(holder="they", epoch=7, nonce="theirs", seq=3, ttl_ms=10_000, state="held", presence="chan")
NEWCOMER = Standby(unbroken=True)


def leader(**changes: object) -> Leader:
    """Return a leader since 100, when its attempt was sent."""
    values = {"term": OURS, "since": 100.0, "seq": 1, "next_renewal": 102.5, "presence": "mine"}
    return Leader(**{**values, **changes})


def absorb(state: Standby | Leader, outcome: Any, now: float = 100.0, timing: Timing = TIMING) -> Any:
    return state_machine.absorb(state, outcome, now, timing)


def view(record: LeaseRecord | None = THEIRS, subscribers: int = 1, run_id: str = "r") -> LeaseView:
    return LeaseView(record, subscribers, server_ms=0, run_id=run_id if subscribers == 0 else "")


def held(**changes: object) -> LeaseView:
    """Return a look at a lease whose holder is present."""
    return view(replace(THEIRS, **changes))


def absent(server: str = "r", **changes: object) -> LeaseView:
    """Return a look at a lease whose holder is absent on a server."""
    return view(replace(THEIRS, **changes), 0, server)


def acquired(sent_at: float) -> Campaigned:
    return Campaigned(Acquired(replace(OURS, trusted_until=sent_at + 9), ("", ""), "", "", "mine", 0), "ours")


def renewed(sent_at: float) -> Renewal:
    return Renewal(Renewed("mine", 0), sent_at)


def watch(*looks: tuple[float, LeaseView], state: Standby = Standby()) -> Standby:  # noqa: B008 -- immutable
    """Return a standby that looked at these instants."""
    for now, look in looks:
        state = absorb(state, look, now)
    return state


def campaigns(state: Standby, now: float, **fitness: Any) -> bool:
    return isinstance(decide(state, now, Fitness(**fitness)), Campaign)
