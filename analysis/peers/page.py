"""Text that a script writes into a page, between two marks; a table as such a text."""

from __future__ import annotations

from pathlib import Path

from collage_mpi.system.table import Table


def write_into(page: Path, name: str, text: str) -> None:
    """Put text between the page's marks `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        SystemExit: the page lacks one of them.
    """
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, mark, rest = page.read_text().partition(first)
    after = rest.partition(last)[2]
    if not mark or last not in rest:
        raise SystemExit(f"{page} needs the marks {first} and {last}, in this order")
    page.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}")


def markdown_of(table: Table) -> str:
    """A table in Markdown: numbers end at the right."""
    heads = table.heads
    rule = ["---" if column.left else "---:" for column in heads]
    rows = [[column.label for column in heads], rule, *table.texts()]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)
