"""Text that a script writes into a page, between two marks."""

from __future__ import annotations

from pathlib import Path


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
