"""Packages that need an extra."""

import importlib.util
import sys

import pytest


@pytest.mark.parametrize("extra", ["redbeat", "sqlalchemy"])
def test_missing_extra_is_named(extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.delitem(sys.modules, f"ha_beat.{extra}", raising=False)
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module(f"ha_beat.{extra}")
    assert f"ha-beat[{extra}]" in str(raised.value)
