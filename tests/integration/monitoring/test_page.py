"""Tests of the page in a browser, on a real cluster."""

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.monitoring.test_replicas import Probed
from tests.support.servers import LOCALHOST, PartMissing, RedisServer, need, wait_for

pytestmark = pytest.mark.slow

SPEC = {"fast": {"every": 0.2}, "reports": {"every": 2, "task": "mail.reports"}, "nightly": {"cron": "0 3"}}


def chromium() -> str:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise PartMissing("chromium is not on PATH (Debian: apt-get install chromium)")
    return path


def imported(module: str) -> Any:
    def load() -> Any:
        try:
            return importlib.import_module(module)
        except ImportError as exc:
            raise PartMissing(str(exc)) from exc

    return need(load)


@pytest.fixture(scope="module")
def _module_cluster() -> Iterator[Probed]:
    with need(RedisServer) as server:
        cluster = Probed(server.url, cluster="shop", spec=SPEC)
        cluster[0].env["HA_BEAT_PAGE_URL"] = "https://beat.example/{replica}"
        with cluster:
            cluster.settle()
            yield cluster


@pytest.fixture
def cluster(_module_cluster: Probed) -> Probed:
    """Return the module's cluster; replicas that a failed test has left paused or ended run again."""
    _module_cluster.heal()
    return _module_cluster


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = need(chromium)
    with imported("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, cluster: Probed, number: int, **context: Any) -> Iterator[tuple[Any, list[str]]]:
    """Open the page of one replica, and collect the browser's errors."""
    complaints: list[str] = []
    with contextlib.closing(browser.new_context(viewport={"width": 1280, "height": 900}, **context)) as room:
        page = room.new_page()
        page.on("console", lambda line: complaints.append(line.text) if line.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://{LOCALHOST}:{cluster.ports[number]}/")
        page.wait_for_selector("#replicas tr:nth-child(3)", timeout=20_000)
        page.wait_for_selector("#recent .tag", timeout=20_000)
        yield page, complaints


def until(page: Any, script: str, argument: object = None, timeout: float = 20.0) -> None:
    """Wait until the script is true. Playwright's own function needs `eval`, which the page's policy forbids."""
    wait_for(lambda: page.evaluate(f"argument => {script}", argument), timeout, script, 0.1)


def test_every_replica_serves_the_whole_cluster(browser, cluster):
    leader = cluster.wait_for_leader()
    for number in range(3):
        with opened(browser, cluster, number) as (page, complaints):
            assert page.inner_text("#replicas").count("standby") == 2
            assert page.title().startswith(f"{leader.name} leads")
            assert {"fast", "reports", "nightly"} <= set(page.inner_text("#upcoming").split())
            # A browser may not reach the address of a replica without page_url.
            links = page.evaluate("[...document.querySelectorAll('#replicas a')].map(each => each.href)")
            assert links == ["https://beat.example/beat-0"]
            assert f":{cluster.ports[1]}" in page.inner_text("#replicas")
            assert "median" in page.inner_text("#late-note")
            assert page.locator("#timeline rect.bar").count() >= 1
            assert page.locator("#lateness circle").count() >= 1
            assert complaints == []


def test_page_updates_without_losing_focus_or_input(browser, cluster):
    with opened(browser, cluster, 0) as (page, complaints):
        before = page.inner_text("#recent tr:first-child")
        page.focus("#search")
        page.keyboard.type("reports")
        until(page, "!document.querySelector('#recent').innerText.includes('fast')")
        assert "reports" in page.inner_text("#recent")
        page.fill("#search", "")
        until(page, "document.querySelector('#recent tr').innerText !== argument", before)
        assert page.evaluate("document.activeElement.id") == "search"
        page.select_option("#verdict", "skipped")
        assert "enqueued" not in page.inner_text("#recent")
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_passes_the_axe_accessibility_checks(browser, cluster, scheme, width):
    """Check contrast, labels, landmarks and keyboard by axe-core's rules for WCAG 2.1 AA."""
    axe = imported("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, cluster, 1, color_scheme=scheme, bypass_csp=True) as (page, _):
        page.set_viewport_size({"width": width, "height": 900})
        page.click("summary")
        page.wait_for_timeout(300)
        found = axe.run(page).response["violations"]
        assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []


def test_keyboard_reaches_every_control(browser, cluster):
    with opened(browser, cluster, 0) as (page, _):
        reached = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert {"search", "verdict", "span", "SUMMARY", "A"} <= reached


def test_names_with_markup_are_shown_as_text(browser):
    """A user who may name entries must not run scripts in an operator's browser."""
    evil = "<img src=x onerror=\"document.title='owned'\">"
    spec = {evil: {"every": 0.3, "task": "<script>document.title='owned'</script>"}}
    with need(RedisServer) as server, Probed(server.url, replicas=3, spec=spec) as cluster:
        cluster.settle()
        with opened(browser, cluster, 0) as (page, complaints):
            until(page, "document.querySelector('#recent').innerText.includes('onerror')")
            assert page.locator("img").count() == 0
            assert "owned" not in page.title()
            assert complaints == []


def test_without_redis_the_page_shows_no_leader(browser):
    """The page shows neither that there is no leader, which is unknown, nor that the replica is ready."""
    with need(RedisServer) as server, Probed(server.url, spec=SPEC, settings={"lease_ttl": 2}) as cluster:
        cluster.settle()
        with opened(browser, cluster, 0) as (page, complaints):
            server.stop()
            until(page, "document.title.startsWith('leader: unknown')", timeout=30)
            assert "unreachable" in page.inner_text("#summary")
            rows = "[...document.querySelectorAll('#replicas tr')]"
            own = f"{rows}.find(row => /\\bnow\\b/.test(row.innerText)).innerText"
            until(page, f"/\\bno\\b/.test({own})", timeout=30)
            assert complaints == []


def test_open_page_shows_a_takeover(browser, cluster):
    """Last in this module, because it kills the leader and then stops the replica that serves the page."""
    leader = cluster.settle()
    watching = next(number for number, replica in enumerate(cluster) if replica is not leader)
    with opened(browser, cluster, watching) as (page, complaints):
        leader.kill()
        successor = cluster.wait_for_leader(other_than=leader)
        until(page, "document.title.startsWith(argument + ' leads')", successor.name)
        until(page, "document.querySelectorAll('#timeline rect.gap').length > 0")
        assert f"{successor.name} leads now" in page.inner_text("#announce")
        assert complaints == []
        # A paused process ends no connection. Only its silence shows the pause.
        cluster[watching].pause()
        until(page, "document.querySelector('#live').innerText.includes('nothing heard')", timeout=30)
        assert page.locator("#live.off").count() == 1
        assert "nothing heard" in page.inner_text("#announce")
        cluster[watching].resume()
        until(page, "document.querySelector('#live').innerText === 'live'", timeout=40)
        cluster[watching].kill()
        until(page, "document.querySelector('#live').innerText.includes('does not answer')")
        cluster[watching].start()
        wait_for(lambda: cluster.says(cluster[watching], "/livez") == 200, 30, "the replica's return")
        until(page, "document.querySelector('#live').innerText === 'live'", timeout=40)
