"""Suggestions for a misspelled name."""

import difflib

import pytest

from ha_beat.suggest import nearest


@pytest.mark.parametrize("misspelled", ["reports.daly.4242.send", "report.daily.4242.send", "reports.daily.4242.sned"])
def test_nearest_of_many_names_compares_few_of_them(misspelled, monkeypatch):
    """A leader with 10,000 entries must not take half a second to answer."""
    compare, compared = difflib.get_close_matches, []

    def close(name: str, names: list[str], **options: float) -> list[str]:
        compared.extend(names)
        return compare(name, names, **options)

    monkeypatch.setattr(difflib, "get_close_matches", close)
    assert nearest(misspelled, [f"reports.daily.{n}.send" for n in range(10_000)])[0] == "reports.daily.4242.send"
    assert len(compared) <= 100
