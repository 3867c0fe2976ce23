"""Blocks of README and docs that are generated from the code. A test fails if one is stale.

python -m tests.integration.docs.generated      writes them
"""

import ast
import re
from collections.abc import Callable

import click

from ha_beat.cli.celery_command import ha_beat
from ha_beat.monitoring.metrics import DEFINITIONS
from ha_beat.settings import SETTINGS, Derived, Setting
from tests.support.commands import ROOT


def commands() -> str:
    """Return every command of `celery -A proj ha-beat` with its help."""
    context = click.Context(ha_beat, info_name="ha-beat")
    parts = []
    for name in ha_beat.list_commands(context):
        command = ha_beat.get_command(context, name)
        assert command is not None
        parts.append(_one(name, command, context))
    return "\n\n".join(parts)


def _one(name: str, command: click.Command, parent: click.Context) -> str:
    arguments = [_argument(each) for each in command.params if isinstance(each, click.Argument)]
    lines = [f"## `{' '.join([name, *arguments])}`", ""]
    lines += [" ".join(part.split()) + "\n" for part in (command.help or "").split("\n\n")]
    rows = [
        record
        for each in command.params
        if isinstance(each, click.Option) and (record := each.get_help_record(click.Context(command, parent=parent)))
    ]
    if rows:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{spelling.replace('|', chr(92) + '|')}` | {help_} |" for spelling, help_ in rows]
    if command.epilog:
        lines += ["", command.epilog.replace(": celery ", ": `celery ", 1) + "`."]
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip()


def _argument(argument: click.Argument) -> str:
    name = argument.human_readable_name.upper()
    return name if argument.required else f"[{name}]"


def settings_table() -> str:
    lines = ["| setting `ha_beat_…` | default | what it does |", "|---|---|---|"]
    for setting in SETTINGS:
        right = setting.kind.right.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | {_default(setting)} | {setting.help} *({right[0].upper()}{right[1:]}.)* |")
    return "\n".join(lines)


def _default(setting: Setting) -> str:
    default = setting.default
    if isinstance(default, Derived):
        return "`{}`" if default.text == "{}" else default.text
    if default is None or isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def metrics_table() -> str:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        if metric.buckets:
            labels = f"`le`: {metric.buckets[0]:g} to {metric.buckets[-1]:g}"
        only = " *(Only with `metrics_per_entry`.)*" if metric.per_entry else ""
        lines.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.help}{only} |")
    return "\n".join(lines)


def modules_table() -> str:
    """Return every module of the package except `__init__`, with the first sentence of its docstring."""
    lines = ["| module | responsibility |", "|---|---|"]
    package = ROOT / "ha_beat"
    modules = (path for path in package.rglob("*.py") if path.name != "__init__.py")
    for path in sorted(modules, key=lambda path: (len(path.parts) > len(package.parts) + 1, path)):
        if docstring := ast.get_docstring(ast.parse(path.read_text("utf-8"))):
            sentence = " ".join(docstring.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
            plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", sentence).replace("``", "`")
            lines.append(f"| `{path.relative_to(package)}` | {plain} |")
    return "\n".join(lines)


#: File, name of the block, function that generates it.
BLOCKS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/settings.md", "settings", settings_table),
    ("docs/monitoring.md", "metrics", metrics_table),
    ("docs/cli.md", "cli", commands),
    ("docs/contributing.md", "modules", modules_table),
)


def with_block(text: str, name: str, content: str) -> str:
    """Return the text with the content between the block's markers.

    Raises:
        ValueError: there are no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"no markers {begin} and {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    for file, name, make in BLOCKS:
        path = ROOT / file
        path.write_text(with_block(path.read_text("utf-8"), name, make()), "utf-8")


if __name__ == "__main__":
    main()
