"""Admin page "Beat cluster" in a browser."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django_celery_beat.models import PeriodicTask

from tests.faults.cluster import BeatCluster, base_environment
from tests.integration.django.beats import beats
from tests.integration.django.conftest import Site, create_staff
from tests.integration.django.rows import every, row
from tests.support.commands import ROOT
from tests.support.servers import ServerProcess, find_program, free_port, need, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def browser() -> Iterator[Any]:
    path = need(lambda: find_program("chromium", "chromium-browser", "google-chrome"))
    from playwright.sync_api import sync_playwright

    # Playwright runs an event loop in this thread, in which Django would refuse queries.
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
    """Run Django's server on the site and return its URL."""
    port = free_port()
    command = [sys.executable, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}"]
    env = base_environment(site.env(DEBUG=True))
    server = ServerProcess(command, tmp_path / "web.log", cwd=ROOT, env=env)
    yield f"http://127.0.0.1:{port}"
    server.kill()


@pytest.fixture
def running(site: Site) -> Iterator[BeatCluster]:
    row("nightly report", interval=every(0.5))
    with beats(site, replicas=3) as cluster:
        cluster.wait_for_leader()
        site.wait_for()
        yield cluster


def wait_for_text(page: Any, element: str, text: str) -> None:
    page.wait_for_function(
        "([id, text]) => document.getElementById(id).textContent.includes(text)", arg=[element, text]
    )


def wait_for_shown_leader(page: Any, name: str) -> None:
    shown = "name => document.querySelector('.ha-leader')?.textContent.startsWith(name)"
    page.wait_for_function(shown, arg=name, timeout=20_000)


@pytest.fixture
def screenshots(tmp_path: Path) -> str:
    return os.environ.get("SCREENSHOTS", str(tmp_path))


def page_of(browser: Any, web: str, *permissions: str, **context: Any) -> tuple[Any, list[str]]:
    """Open the page as a member of staff. Return the page and the browser's errors."""
    create_staff(*permissions)
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 1000}, **context})
    errors: list[str] = []

    def note(message: Any) -> None:
        # The site has no icon.
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
            errors.append(f"{message.text} {message.location['url']}")

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def reach() -> bool:
        page.goto(f"{web}/admin/login/?next=/admin/ha_beat/cluster/")
        return True

    wait_for(reach, 30, "the web server", 0.2)
    page.fill("#id_username", "kim")
    page.fill("#id_password", "kim")
    page.click("input[type=submit]")
    page.wait_for_selector("#ha-replicas tr.ha-leader", timeout=20_000)
    return page, errors


def test_page_follows_a_change_of_leader(browser, web, running, screenshots):
    page, errors = page_of(browser, web, "view_cluster")
    leader = running.wait_for_leader()
    wait_for_shown_leader(page, leader.name)
    page.screenshot(path=f"{screenshots}/cluster.png", full_page=True)
    leader.kill()
    wait_for_shown_leader(page, running.wait_for_leader(other_than=leader).name)
    assert page.locator("#ha-control").count() == 0
    assert "nightly report" in page.locator("#ha-recent").inner_text()
    assert page.locator("#ha-terms tr").count() >= 2
    assert errors == []


def test_buttons_pause_resume_and_step_down(browser, web, running, screenshots):
    page, errors = page_of(browser, web, "control_cluster")
    page.on("dialog", lambda dialog: dialog.accept())
    assert page.locator("#ha-resume").is_hidden()
    page.fill("#ha-reason", "upgrade")
    page.click("#ha-pause")
    wait_for_text(page, "ha-state", "paused by kim (admin): upgrade")
    page.screenshot(path=f"{screenshots}/paused.png", full_page=True)
    page.click("#ha-resume")
    page.wait_for_function("!document.getElementById('ha-state').textContent.includes('paused')")
    leader = running.wait_for_leader()
    page.click("button[value=step_down]")
    wait_for_shown_leader(page, running.wait_for_leader(other_than=leader).name)
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_are_accessible(browser, web, running, screenshots, scheme, width):
    """axe checks contrast, labels and keyboard access in the parts of the pages that this package adds."""
    from axe_playwright_python.sync_playwright import Axe

    codes = ("control_cluster", "view_periodictask", "change_periodictask")
    page, errors = page_of(browser, web, *codes, viewport={"width": width, "height": 900}, color_scheme=scheme)
    task = f"{web}/admin/django_celery_beat/periodictask/"
    for name, url, part in (
        ("page", "", "#ha-beat"),
        ("list", task, ".column-cluster_state, .field-cluster_state"),
        ("form", f"{task}{PeriodicTask.objects.get().pk}/change/", ".field-misfire, .field-last_verdict"),
    ):
        if url:
            page.goto(url)
        page.screenshot(path=f"{screenshots}/{name}-{scheme}-{width}.png", full_page=True)
        found = Axe().run(page, context=part).response["violations"]
        violations = [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found]
        assert violations == [], name
        if name == "page":
            excess = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert excess <= 0, "the page scrolls sideways"
    assert errors == []


def test_task_is_linked_only_for_users_who_may_view_it(browser, web, running):
    page, _ = page_of(browser, web, "view_cluster")
    page.wait_for_selector("#ha-recent td")
    assert page.locator("#ha-recent a").count() == 0
    User.objects.get().user_permissions.add(Permission.objects.get(codename="view_periodictask"))
    page.reload()
    page.wait_for_selector("#ha-upcoming a")
    page.click("#ha-recent a")
    assert "nightly report" in page.inner_text("#content")


def test_long_name_hides_no_column(browser, web, running):
    row("one-name-without-any-space-" * 7, interval=every(1))
    page, errors = page_of(browser, web, "view_cluster")
    wait_for_text(page, "ha-recent", "without-any-space")
    tables = "[...document.querySelectorAll('.ha-wide')].map(each => each.scrollWidth - each.clientWidth)"
    assert max(page.evaluate(tables)) <= 0
    assert errors == []


def test_stale_page_shows_an_error_and_no_green_light(browser, web, running):
    """First the server does not answer, then the session ends."""
    page, _ = page_of(browser, web, "control_cluster")
    page.on("dialog", lambda dialog: dialog.accept())
    assert page.locator("#ha-dot.ha-good").count() == 1
    page.route("**/data/", lambda _: None)
    page.wait_for_selector("#ha-error:not([hidden])")
    assert page.locator("#ha-dot.ha-good").count() == 0
    page.unroute("**/data/")
    page.wait_for_selector("#ha-dot.ha-good", timeout=20_000)
    page.context.clear_cookies()
    page.wait_for_selector("#ha-error:not([hidden])")
    assert page.locator("#ha-dot.ha-good").count() == 0
    page.click("button[value=step_down]")
    # Django checks the token before the session.
    wait_for_text(page, "ha-answer", "not allowed")
