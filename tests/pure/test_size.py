"""How large the package, its analysis, its tests and its pages may be.

A line of code holds a token that is neither a comment nor a docstring. To raise a ceiling is a
commit of its own, with its reason; after something was removed, the ceiling is lowered to what is
left.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = {"collage_mpi": 38_579, "analysis": 6_046, "tests": 54_073}
GUIDE_WORDS = 19_018  # every page of docs/ but architecture.md
ARCHITECTURE_WORDS = 2_500
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def lines_of_code(text: str) -> int:
    """Number of lines with a token that is neither a comment nor part of a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        line
        for token in tokens
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def words_of(page: Path) -> int:
    return len(page.read_text("utf-8").split())


@pytest.mark.parametrize("folder", LINES)
def test_a_folder_has_no_more_lines_of_code_than_it_may(folder: str) -> None:
    files = (ROOT / folder).rglob("*.py")
    assert sum(lines_of_code(path.read_text("utf-8")) for path in files) <= LINES[folder]


def test_the_pages_have_no_more_words_than_they_may() -> None:
    built = ROOT / "docs" / "architecture.md"
    guide = set((ROOT / "docs").rglob("*.md")) - {built}
    assert sum(words_of(page) for page in guide) <= GUIDE_WORDS
    assert words_of(built) <= ARCHITECTURE_WORDS


def test_comments_docstrings_and_blank_lines_are_no_lines_of_code() -> None:
    code = '"""Says.\n\nMore.\n"""\n\n# why\nx = (\n    1,  # one\n)\n\n\ndef f():\n    """Is."""\n'
    assert lines_of_code(code + "    return x\n") == 5
