"""Code blocks of README and docs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.commands import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "example" / "README.md"]

_FENCE = re.compile(r"^```(?P<label>[\w-]*)(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Fenced block. ``label`` follows the fence."""

    page: str
    line: int
    label: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[str]:
        """Return the commands of a shell block, with continued lines joined."""
        for line in self.body.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


def blocks(*labels: str) -> list[Block]:
    """Return every block with one of these labels, or every block."""
    found = []
    for path in PAGES:
        text = path.read_text("utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            block = Block(str(path.relative_to(ROOT)), line, match["label"], match["body"])
            if not labels or block.label in labels:
                found.append(block)
    return found
