"""The page 'Beat cluster' in a real browser: live, and with its buttons for those who may."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django_celery_beat.models import PeriodicTask

from tests.faults.cluster import REPOSITORY, BeatCluster, base_environment
from tests.integration.django.beats import beats, every, row
from tests.integration.django.conftest import Site
from tests.support.servers import PartMissing, ServerProcess, free_port, need, wait_for

pytestmark = pytest.mark.slow


def _browser() -> str:
    if importlib.util.find_spec("playwright") is None:
        raise PartMissing("the browser is driven by playwright")
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        raise PartMissing("there is no chromium")
    return found


@pytest.fixture
def browser() -> Iterator[Any]:
    path = need(_browser)
    from playwright.sync_api import sync_playwright

    # Django takes the loop that playwright runs for a reason to refuse queries in this thread.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    try:
        with sync_playwright() as driver:
            running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
            yield running
            running.close()
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def web(site: Site, tmp_path: Path) -> Iterator[str]:
    """Django's own server on the site; the URL."""
    port = free_port()
    command = [sys.executable, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}"]
    env = base_environment(site.env(DEBUG=True))
    server = ServerProcess(command, tmp_path / "web.log", cwd=REPOSITORY, env=env)
    yield f"http://127.0.0.1:{port}"
    server.kill()


@pytest.fixture
def running(site: Site) -> Iterator[BeatCluster]:
    row("nightly report", interval=every(0.5))
    with beats(site, replicas=3) as cluster:
        cluster.wait_for_leader()
        wait_for(site.names, 40, "a message", 0.1)
        yield cluster


def page_of(browser: Any, web: str, *permissions: str, **context: Any) -> tuple[Any, list[str]]:
    """The page, as a member of staff sees it, and the browser's complaints."""
    user = User.objects.create_user("kim", password="kim", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 1000}, **context})
    complaints: list[str] = []

    def note(message: Any) -> None:
        # The tests' site has no icon.
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
            complaints.append(f"{message.text} {message.location['url']}")

    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def reach() -> bool:
        page.goto(f"{web}/admin/login/?next=/admin/ha_beat/cluster/")
        return True

    wait_for(reach, 30, "the web server", 0.2)
    page.fill("#id_username", "kim")
    page.fill("#id_password", "kim")
    page.click("input[type=submit]")
    page.wait_for_selector("#ha-replicas tr.ha-leader", timeout=20_000)
    return page, complaints


def test_a_change_of_leader_shows_by_itself(browser, web, running, tmp_path):
    """The leader is killed while the page is open."""
    page, complaints = page_of(browser, web, "view_cluster")
    leader = running.wait_for_leader()
    shows = "name => document.querySelector('.ha-leader')?.textContent.startsWith(name)"
    page.wait_for_function(shows, arg=leader.name)
    page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + "/cluster.png", full_page=True)
    leader.kill()
    after = running.wait_for_leader(other_than=leader)
    page.wait_for_function(
        "name => document.querySelector('.ha-leader')?.textContent.startsWith(name)", arg=after.name, timeout=20_000
    )
    assert page.locator("#ha-control").count() == 0
    assert "nightly report" in page.locator("#ha-recent").inner_text()
    assert page.locator("#ha-terms tr").count() >= 2, "one row per term"
    assert complaints == []


def test_pause_and_step_down_by_the_buttons(browser, web, running, tmp_path):
    page, complaints = page_of(browser, web, "control_cluster")
    page.on("dialog", lambda dialog: dialog.accept())
    assert page.locator("#ha-resume").is_hidden()
    page.fill("#ha-reason", "upgrade")
    page.click("#ha-pause")
    page.wait_for_function("document.getElementById('ha-state').textContent.includes('paused by kim (admin): upgrade')")
    page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + "/paused.png", full_page=True)
    page.click("#ha-resume")
    page.wait_for_function("!document.getElementById('ha-state').textContent.includes('paused')")
    leader = running.wait_for_leader()
    page.click("button[value=step_down]")
    after = running.wait_for_leader(other_than=leader)
    page.wait_for_function(
        "name => document.querySelector('.ha-leader')?.textContent.startsWith(name)", arg=after.name, timeout=20_000
    )
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_to_complain_of(browser, web, running, tmp_path, scheme, width):
    """Contrast, labels, keyboard: in what is ours of the page, and of the list and the form of periodic tasks."""
    from axe_playwright_python.sync_playwright import Axe

    codes = ("control_cluster", "view_periodictask", "change_periodictask")
    page, complaints = page_of(browser, web, *codes, viewport={"width": width, "height": 900}, color_scheme=scheme)
    folder = os.environ.get("SCREENSHOTS", str(tmp_path))
    task = f"{web}/admin/django_celery_beat/periodictask/"
    for name, url, part in (
        ("page", "", "#ha-beat"),
        ("list", task, ".column-last_verdict, .column-next_due, .column-enqueued_by, .field-last_verdict"),
        ("form", f"{task}{PeriodicTask.objects.get().pk}/change/", ".field-misfire, .field-last_verdict"),
    ):
        if url:
            page.goto(url)
        page.screenshot(path=f"{folder}/{name}-{scheme}-{width}.png", full_page=True)
        found = Axe().run(page, context=part).response["violations"]
        told = [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found]
        assert told == [], name
        if name == "page":
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, "the page can be scrolled sideways"
    assert complaints == []


def test_a_link_leads_to_a_task_for_those_who_may_see_it(browser, web, running):
    page, _ = page_of(browser, web, "view_cluster")
    page.wait_for_selector("#ha-recent td")
    assert page.locator("#ha-recent a").count() == 0
    User.objects.get().user_permissions.add(Permission.objects.get(codename="view_periodictask"))
    page.reload()
    page.wait_for_selector("#ha-upcoming a")
    page.click("#ha-recent a")
    assert "nightly report" in page.inner_text("#content")


def test_a_long_name_hides_nothing(browser, web, running):
    row("one-name-without-any-space-" * 7, interval=every(1))
    page, complaints = page_of(browser, web, "view_cluster")
    page.wait_for_function("document.getElementById('ha-recent').textContent.includes('without-any-space')")
    tables = "[...document.querySelectorAll('.ha-wide')].map(each => each.scrollWidth - each.clientWidth)"
    assert max(page.evaluate(tables)) <= 0
    assert complaints == []


def test_a_page_that_is_not_up_to_date_says_so(browser, web, running):
    """And its light does not stay green: the server is silent, then the session is over."""
    page, _ = page_of(browser, web, "control_cluster")
    page.on("dialog", lambda dialog: dialog.accept())
    assert page.locator("#ha-dot.ha-good").count() == 1
    page.route("**/data/", lambda _: None)
    page.wait_for_function("document.getElementById('ha-error').textContent.includes('does not answer')")
    assert page.locator("#ha-dot.ha-good").count() == 0
    page.unroute("**/data/")
    page.wait_for_selector("#ha-dot.ha-good", timeout=20_000)
    page.context.clear_cookies()
    page.wait_for_function("document.getElementById('ha-error').textContent.includes('not logged in any more')")
    assert page.locator("#ha-dot.ha-good").count() == 0
    page.click("button[value=step_down]")
    # Without its cookie the token is refused before Django asks who it is.
    page.wait_for_function("document.getElementById('ha-answer').textContent.includes('you may not do this')")
