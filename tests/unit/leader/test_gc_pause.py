"""Memory of bulk allocations."""

import ctypes

import pytest

from ha_beat.leader.gc_pause import return_free_memory


@pytest.mark.parametrize("error", [None, AttributeError, OSError, TypeError])
def test_free_memory_is_returned_where_the_c_library_can(monkeypatch, error):
    """Only glibc has the function, and Windows has no library of the process."""
    calls = []

    class Library:
        def __init__(self, name: None) -> None:
            if error is not None:
                raise error

        malloc_trim = staticmethod(calls.append)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    return_free_memory()
    assert calls == ([0] if error is None else [])
