"""Choice between the quick and the full part of the tests."""

import os
import sys

import hypothesis
import pytest

# Without compiled modules, each of some hundred processes compiles them for a second or two.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = ["tests.support.reruns", "tests.support.servers.fixtures", "tests.figures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the slow tests too")


def pytest_configure(config: pytest.Config) -> None:
    # No deadline for an example, as the machine may be busy. CI tries the same examples each time.
    ci = os.environ.get("CI", "").lower() == "true"
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("all", deadline=None, suppress_health_check=slow, derandomize=ci)
    hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("all"), max_examples=15)
    hypothesis.settings.load_profile("all" if config.getoption("--full") else "quick")
    # xdist would run files of few tests last, but those take longest. In the order of their names, the short unit tests
    # come last.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full") or config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
