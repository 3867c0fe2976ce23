"""Page about Redis: it lists every key, and the bound of each."""

import inspect
import re

import pytest

from ha_beat.store.keys import Keys
from tests.support.commands import ROOT

CHANNELS = {"wake", "presence"}


def names() -> set[str]:
    members = [value for name, value in inspect.getmembers(Keys("x")) if not name.startswith("_") and name != "cluster"]
    return {(value if isinstance(value, str) else value("*")).split(":")[2] for value in members}


@pytest.mark.parametrize(("heading", "listed"), [("## What is in it", names()), ("### Bounds", names() - CHANNELS)])
def test_table_lists_every_key(heading: str, listed: set[str]):
    """The page has to name the bound of a new key."""
    table = (ROOT / "docs" / "redis.md").read_text("utf-8").partition(heading)[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `…:")]
    assert set(re.findall(r"`…:([a-z]+)", " ".join(rows))) == listed
