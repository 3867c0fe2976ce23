"""Public API: the page in the docs, ``__all__`` of the modules, and a typed program that uses it."""

import ast
import re
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery

from tests.typing import public_api

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/public-api.md").read_text()


def names_on_the_page() -> dict[str, list[str]]:
    """Return the names on the page, by module. A row without a module belongs to the module above."""
    found: dict[str, list[str]] = {}
    rows = re.findall(r"^\| (?:`(ha_beat[\w.]*)`)? ?\| (.*?) ?\|", PAGE.partition("## Outside Python")[0], re.MULTILINE)
    for module, names in rows:
        if module:
            found[module] = []
        if found:
            found[list(found)[-1]] += re.findall(r"`(\w+)`", names)
    return found


def exported(module: str) -> list[str]:
    """Return ``__all__`` of a module without importing it, because some modules need Django."""
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize("module", names_on_the_page())
def test_page_lists_exactly_what_the_module_exports(module: str):
    assert sorted(names_on_the_page()[module]) == sorted(exported(module))


def test_page_lists_every_public_module():
    general = {"scheduler", "guard", "signals", "testing"}
    stores = {"django", "django.schedulers", "django.entries", "django.admin", "redbeat.schedulers"}
    stores |= {"sqlalchemy", "sqlalchemy.schedulers", "sqlalchemy.entries"}
    assert set(names_on_the_page()) == {"ha_beat", *(f"ha_beat.{module}" for module in general | stores)}


def test_typed_program_uses_every_public_name():
    source = (ROOT / "tests/typing/public_api.py").read_text()
    unused = [name for names in names_on_the_page().values() for name in names if not re.search(rf"\b{name}\b", source)]
    assert unused == []


def test_typed_program_runs():
    app = Celery("typed", broker="redis://localhost:1/0", set_as_current=False)
    assert public_api.scheduler_lines(app)[0] == public_api.scheduler_lines(app)[1]
    assert public_api.scheduled_at(app) == public_api.START
    assert public_api.guarded_tasks(Celery("guarded", broker="memory://", set_as_current=False))
    assert public_api.connect_signals()[0] == "leadership_gained"
    first, second = public_api.take_over_a_lease()
    assert second > first
    assert public_api.due_instants() == [public_api.START + timedelta(minutes=30 * n) for n in (1, 2)]
