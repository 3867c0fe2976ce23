"""Page of the benchmarks."""

from tests.benchmarks.results import OURS, STOCK, Benchmark, Result, Unfinished, page


def test_page_states_versions_ratios_and_what_was_not_done():
    results = [Result(OURS, 1000, {"time": 0.5}), Result(STOCK, 1000, {"time": Unfinished(30.0, 7, 1000)})]
    text = page([Benchmark("Title", ["module", 1000], "entries", ["time"], results)])
    assert "celery 5." in text
    assert "`python -m tests.benchmarks.module 1000`" in text
    assert "| 1,000 | plain beat | not done after 30 s: 7 of 1,000 |" in text
    assert "|  | plain beat / ha_beat | > 60x |" in text
