"""Generated blocks of the docs."""

import pytest

from tests.integration.docs.generated import BLOCKS, with_block
from tests.support.commands import ROOT


@pytest.mark.parametrize(("file", "name", "make"), [pytest.param(*each, id=f"{each[0]} {each[1]}") for each in BLOCKS])
def test_generated_block_matches_the_code(file, name, make):
    """`python -m tests.integration.docs.generated` updates the blocks."""
    text = (ROOT / file).read_text("utf-8")
    assert with_block(text, name, make()) == text


def test_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="no markers"):
        with_block("text", "settings", "table")
