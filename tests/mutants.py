"""Mutants: the package without one of its guards.

A marker is the comment `# guard: <name>` (in Lua: `-- guard: <name>`) at the end of a line. In Python it marks the
statement, `case`, operand, argument or other expression that starts on that line, or else the statement that ends
there. In Lua it marks the line.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import ha_beat
from ha_beat.store import scripts as redis_scripts

SetAttribute = Callable[[Any, str, Any], object]

PACKAGE = Path(ha_beat.__file__).parent
_MARKER = re.compile(r"(?:#|--) guard: ([a-z0-9]+(?:-[a-z0-9]+)*)\s*$")


@dataclass(frozen=True)
class Change:
    """Kind of mutation. `text` is the new source of a REPLACE."""

    kind: str
    text: str = ""


#: The condition, operand or value becomes False, or True.
NEVER = Change("replace", "False")
ALWAYS = Change("replace", "True")
#: The statement, operand, argument or line is removed.
DROP = Change("drop")
#: The first or last operand of the boolean expression is removed.
DROP_FIRST = Change("drop operand", "0")
DROP_LAST = Change("drop operand", "-1")
#: Lua: an error is raised instead of returned.
CALL = Change("call")


def REPLACE(text: str) -> Change:  # noqa: N802 - reads as the other kinds
    """Replace the value by this expression, or the marked statement by this statement."""
    return Change("replace", text)


@dataclass(frozen=True)
class Marker:
    path: Path
    line: int

    @property
    def module(self) -> str:
        """Return the name of its module; empty in Lua."""
        parts = self.path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(part for part in parts if part != "__init__") if self.path.suffix == ".py" else ""


@cache
def markers() -> dict[str, list[Marker]]:
    """Return the places of every marker in the package, by its name."""
    found: dict[str, list[Marker]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in {".py", ".lua"}:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if match := _MARKER.search(line):
                    found.setdefault(match[1], []).append(Marker(path, number))
    return found


class Mutant:
    """Change at one or several markers."""

    def __init__(self, change: Change, *names: str) -> None:
        self.change = change
        self.names = names

    def markers(self) -> list[Marker]:
        """Return the place of each marker. Raises LookupError if a marker is missing or stands twice."""
        places = [markers().get(name, []) for name in self.names]
        for name, found in zip(self.names, places, strict=True):
            if len(found) != 1:
                raise LookupError(f"the marker 'guard: {name}' stands at {len(found)} places: {found}")
        return [found[0] for found in places]

    def apply(self, set_attribute: SetAttribute = setattr) -> None:
        """Remove the guard from this process.

        Raises LookupError if a marker is missing or stands twice, or if the change does not fit what it marks.
        """
        places = self.markers()
        for path in {place.path for place in places}:
            lines = [place.line for place in places if place.path == path]
            if path.suffix == ".lua":
                self._apply_to_scripts(set_attribute)
            else:
                self._apply_to_module(places[0].module, path, lines, set_attribute)

    def _apply_to_scripts(self, set_attribute: SetAttribute) -> None:
        original = redis_scripts._source

        def mutated(*args: Any) -> str:
            return "\n".join(map(self._mutated_line, original(*args).split("\n")))

        set_attribute(redis_scripts, "_source", cache(mutated))

    def _mutated_line(self, line: str) -> str:
        match = _MARKER.search(line)
        return mutate_lua(line[: match.start()], self.change) if match and match[1] in self.names else line

    def _apply_to_module(self, name: str, path: Path, lines: list[int], set_attribute: SetAttribute) -> None:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
        # Only the marked statements are compiled again, with the future import that they need.
        tree.body = [
            node
            for node in tree.body
            if (isinstance(node, ast.ImportFrom) and node.module == "__future__")
            or any(_first_line(node) <= line <= (node.end_lineno or 0) for line in lines)
        ]
        owners = [Mutation(tree, line, self.change).apply() for line in lines]
        compiled = compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)
        module = import_module(name)
        for owner in dict.fromkeys(owners):
            function = _function(module, owner)
            code = next(
                code
                for code in _codes(compiled)
                if (code.co_qualname, code.co_firstlineno)
                == (function.__code__.co_qualname, function.__code__.co_firstlineno)
            )
            set_attribute(function, "__code__", code)


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def _function(module: Any, name: str) -> FunctionType:
    """Return the plain function below properties, class methods and decorators."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "fget", None) or getattr(found, "func", None) or getattr(found, "__func__", found)
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType), found
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def mutate_lua(line: str, change: Change) -> str:
    """Return the changed line. `line` has no marker; the result is one line, so that lines keep their numbers."""
    if change is CALL:
        if "redis.pcall(" not in line:
            raise LookupError(f"no redis.pcall in: {line}")
        return line.replace("redis.pcall(", "redis.call(", 1)
    if change.kind == "drop":
        return ""
    if change.kind != "replace":
        raise LookupError(f"not for Lua: {change}")
    new = {"False": "false", "True": "true"}.get(change.text, change.text)
    for pattern in (
        r"(\s*(?:if|elseif) ).*?(\bthen\b.*|$)",  # a condition
        r"(\s*(?:and|or) ).*?(\bthen\b.*|$)",  # an operand
        r"(\s*(?:local )?\w+ = ).*()$",  # a value that is assigned
        r"(\s*)[^,]*?(,?\s*)$",  # an argument
    ):
        if match := re.fullmatch(pattern, line.rstrip()):
            return f"{match[1]}{new} {match[2]}"
    raise LookupError(f"nothing to replace in: {line}")


class Mutation:
    """Change of a syntax tree at one line."""

    def __init__(self, tree: ast.Module, line: int, change: Change) -> None:
        self._tree = tree
        self._line = line
        self._change = change
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def apply(self) -> str:
        """Change the tree; return the qualified name of the outermost function in which it was changed."""
        node = self._marked()
        owner = self._owner(node)
        change = self._change
        if change.kind == "drop operand":
            self._drop_operand(self._value(node), int(change.text))
        elif change.kind == "drop":
            self._drop(node)
        elif change.kind == "replace":
            self._replace(node, owner)
        else:
            raise self._unfit(node)
        return owner[1]

    def _unfit(self, node: ast.AST) -> LookupError:
        return LookupError(f"{self._change} does not fit line {self._line}: {ast.unparse(node)}")

    # -- search

    def _marked(self) -> ast.AST:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.stmt) and node.lineno == self._line:
                return node
            if isinstance(node, ast.match_case) and node.pattern.lineno == self._line:
                return node
        starting = [
            node
            for node in ast.walk(self._tree)
            if isinstance(node, ast.expr | ast.keyword) and node.lineno == self._line and not self._goes_on(node)
        ]
        if starting:
            first = min(node.col_offset for node in starting)
            return next(node for node in starting if node.col_offset == first)  # the outermost comes first
        ending = [node for node in ast.walk(self._tree) if isinstance(node, ast.stmt) and self._ends(node)]
        if not ending:
            raise LookupError(f"the marker in line {self._line} marks nothing")
        return ending[-1]

    def _goes_on(self, node: ast.AST) -> bool:
        """True for an operation of which only the first operand is on the line."""
        operation = isinstance(node, ast.BoolOp | ast.IfExp | ast.Compare | ast.BinOp)
        return operation and node.end_lineno != self._line  # type: ignore[attr-defined]

    def _ends(self, node: ast.stmt) -> bool:
        body = getattr(node, "body", None)
        end = body[0].lineno - 1 if body else node.end_lineno
        return node.lineno <= self._line <= (end or 0)

    def _owner(self, node: ast.AST) -> tuple[ast.AST, str]:
        chain = [node]
        while chain[-1] in self._parents:
            chain.append(self._parents[chain[-1]])
        names = []
        for each in reversed(chain):
            if isinstance(each, ast.FunctionDef | ast.ClassDef):
                names.append(each.name)
            if isinstance(each, ast.FunctionDef):
                return each, ".".join(names)
        raise LookupError(f"line {self._line} is not in a function")

    # -- change

    def _field_of(self, node: ast.AST) -> str:
        """Return the name of the field with a node's value or condition; empty if it has none."""
        if isinstance(node, ast.If | ast.While):
            return "test"
        if isinstance(node, ast.match_case):
            return "guard"
        valued = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr | ast.keyword
        return "value" if isinstance(node, valued) else ""

    def _value(self, node: ast.AST) -> ast.expr:
        value = getattr(node, self._field_of(node), None) if self._field_of(node) else node
        if not isinstance(value, ast.expr):
            raise self._unfit(node)
        return value

    def _replace(self, node: ast.AST, owner: tuple[ast.AST, str]) -> None:
        new = ast.parse(self._change.text).body
        self._require_names(new, owner[0])
        field = self._field_of(node)
        if len(new) == 1 and isinstance(new[0], ast.Expr) and (field or isinstance(node, ast.expr)):
            if field:
                setattr(node, field, new[0].value)
            else:
                self._put(node, [new[0].value])
        elif isinstance(node, ast.stmt):
            self._put(node, new)
        else:
            raise self._unfit(node)

    def _require_names(self, new: list[ast.stmt], owner: ast.AST) -> None:
        """Raise LookupError for a name that the function lacks: the mutant would fail for the wrong reason."""
        known = {each.id for each in ast.walk(owner) if isinstance(each, ast.Name)}
        known |= {each.arg for each in ast.walk(owner) if isinstance(each, ast.arg)}
        used = {each.id for statement in new for each in ast.walk(statement) if isinstance(each, ast.Name)}
        if missing := used - known - set(__builtins__):  # type: ignore[call-overload]
            raise LookupError(f"{self._change} uses {missing}, which the function at line {self._line} lacks")

    def _drop(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self._put(node, [ast.Pass()])
        else:
            self._put(node, [])

    def _drop_operand(self, value: ast.expr, index: int) -> None:
        parent = self._parents.get(value)
        if isinstance(parent, ast.BoolOp) and parent.values[index] is value:
            value = parent  # the operand has its own line
        if not isinstance(value, ast.BoolOp):
            raise self._unfit(value)
        del value.values[index]
        if len(value.values) == 1:
            self._put(value, value.values)

    def _put(self, old: ast.AST, new: list[Any]) -> None:
        """Replace a node by others."""
        parent = self._parents[old]
        for field, held in ast.iter_fields(parent):
            if held is old and len(new) == 1:
                setattr(parent, field, new[0])
                return
            if isinstance(held, list) and old in held:
                at = held.index(old)
                held[at : at + 1] = new
                if isinstance(parent, ast.BoolOp) and len(held) == 1:
                    self._put(parent, held)
                return
        raise self._unfit(old)
