"""Options of one entry about overlaps."""

from typing import Any

import pytest

from ha_beat.errors import ConfigurationError
from ha_beat.schedule.entry_options import OVERLAP_TIMEOUT, EntryOptions
from ha_beat.schedule.misfire import MisfireRules


def options(**own: Any) -> EntryOptions:
    return EntryOptions.of("e", {"ha_beat": own}, MisfireRules(), None)


@pytest.mark.parametrize(
    ("own", "busy_for"),
    [
        ({}, 0.0),
        ({"overlap": "allow", "overlap_timeout": 5}, 0.0),
        ({"overlap": "skip"}, OVERLAP_TIMEOUT),
        ({"overlap": "skip", "overlap_timeout": 5}, 5.0),
    ],
)
def test_overlap_keeps_an_entry_busy_for_its_timeout(own, busy_for):
    assert options(**own).busy_for == busy_for


@pytest.mark.parametrize("own", [{"overlap": "no"}, {"overlap_timeout": 0}, {"overlap_timeout": "x"}, {"overlaps": 1}])
def test_invalid_overlap_is_refused_with_the_key(own):
    (key,) = own
    with pytest.raises(ConfigurationError, match=key):
        options(**own)
