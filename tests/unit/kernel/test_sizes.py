"""Functions and classes are small, or their docstrings say why not."""

import ast
from functools import cache
from pathlib import Path

import ha_beat

LONGEST_FUNCTION, MOST_MEMBERS = 60, 17
PACKAGE = Path(ha_beat.__file__).parent


@cache
def definitions() -> list[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]


def members(node: ast.ClassDef) -> int:
    """Return the number of methods or of attributes, whichever is larger."""
    fields = {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                fields.add(each.attr)
    return max(len(fields), sum(isinstance(item, ast.FunctionDef) for item in node.body))


def test_functions_are_short():
    functions = [(place, node) for place, node in definitions() if isinstance(node, ast.FunctionDef)]
    assert [place for place, node in functions if node.end_lineno - node.lineno >= LONGEST_FUNCTION] == []


def test_large_class_says_why():
    classes = [(place, node) for place, node in definitions() if isinstance(node, ast.ClassDef)]
    large = [(place, ast.get_docstring(node) or "") for place, node in classes if members(node) > MOST_MEMBERS]
    assert [place for place, reason in large if "more than 15" not in reason.lower()] == []
    assert len(classes) > 300
