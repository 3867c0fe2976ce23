"""Contact with the lease's server: when it ended and began, from which the loss of state and the waits are counted."""

from datetime import timedelta

import pytest

from ha_beat.election.leader_handle import TermOrigin
from tests.unit.election.electors import TIMING, Electors


@pytest.fixture
def electors() -> Electors:
    made = Electors()
    made.add()
    made.run(5)
    return made


def origin(electors: Electors) -> TermOrigin:
    return electors.leader.handle.origin


def ago(electors: Electors) -> float:
    """Return seconds since the last server became unreachable."""
    return (electors.time.now() - origin(electors).lost_at) / timedelta(seconds=1)


def test_replica_that_never_lost_contact_reports_none(electors: Electors):
    assert origin(electors).lost_at is None
    assert origin(electors).back_at is None


@pytest.mark.parametrize("away", [3.0, 30.0])
def test_after_an_outage_contact_ended_before_it_and_began_with_its_end(electors: Electors, away):
    """No occurrence of the outage is in doubt, and the wait for the previous holder begins at its end."""
    left = electors.clock.elapsed()
    electors.store.reachable = False
    electors.run(away)
    electors.store.restart()
    electors.store.reachable = True
    back = electors.clock.elapsed()
    electors.run(4)
    since = electors.clock.elapsed() - left
    assert since - TIMING.renew_interval - 0.5 <= ago(electors) <= since
    assert origin(electors).back_at == pytest.approx(back, abs=TIMING.renew_interval)


def test_server_that_changed_unseen_is_lost_at_the_acquisition(electors: Electors):
    """No command failed, so every occurrence until now may be in doubt."""
    electors.store.restart()
    began = electors.clock.elapsed()
    electors.run(4)
    assert ago(electors) <= electors.clock.elapsed() - began + TIMING.renew_interval + 0.5
