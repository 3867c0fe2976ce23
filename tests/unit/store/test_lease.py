"""Fence codes of the scripts."""

import pytest

from ha_beat.reasons import TermEnd
from ha_beat.store.lease import fence_reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("no_lease", TermEnd.STATE_LOSS),
        ("other_term", TermEnd.SUPERSEDED),
        ("released", TermEnd.SUPERSEDED),
        ("other_ledger", TermEnd.STATE_LOSS),
        ("other_server", TermEnd.SERVER_CHANGED),
    ],
)
def test_fence_code_gives_the_reason_of_the_end(code: str, reason: TermEnd):
    assert fence_reason(code) is reason
