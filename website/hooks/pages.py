"""What mkdocs does not know of these pages: diagrams without a script, the help of every command.

Mermaid's script is 3.5 MB and lives on a CDN; a page that opens from disk has neither, so a diagram
is a picture in diagrams/, named after the text it was drawn from. A new text is drawn when mermaidx
is there (pip install mermaidx), and else it is a warning, which --strict refuses.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from collage_mpi.commands import COMMANDS
from collage_mpi.commands.parser import build_parser

HERE = Path(__file__).parents[1]
FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.M | re.S)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?=[^<>]*</code>)")
SHORT_CELL = re.compile(r"<td(?=[^>]*>(?:<\w+>)?[^<]{1,20}(?:</\w+>[^<]{0,14})?</td>)")
log = logging.getLogger("mkdocs.hooks")


def on_pre_build(config: Any) -> None:
    """Draw the diagrams that have no picture yet; leave no picture without its diagram."""
    texts = [text for page in HERE.glob("docs/*.md") for text in FENCE.findall(page.read_text())]
    wanted = {picture(text): text for text in texts}
    for path in set(HERE.glob("diagrams/*.svg")) - set(wanted):
        log.warning("no page shows website/diagrams/%s any more: git rm it", path.name)
    for path, text in wanted.items():
        if path.exists():
            continue
        try:
            import mermaidx
        except ImportError:
            first = text.strip().splitlines()[1].strip()
            log.warning("no picture of the diagram with %r: pip install mermaidx, build", first)
            continue
        path.write_text(mermaidx.render(text).svg())


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the pictures and the commands' help where they belong."""
    folder = (HERE / page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        return f"![diagram]({os.path.relpath(picture(match[1]), folder)}){{.diagram}}"

    return FENCE.sub(shown, markdown).replace("<!-- commands -->", commands())


def on_page_content(html: str, **_: Any) -> str:
    """Flags and short cells stay on a line: a browser would break them at their hyphens."""
    prose = re.split(r"(<pre.*?</pre>)", html, flags=re.S)  # every second one is a block of code
    for i in range(0, len(prose), 2):
        prose[i] = SHORT_CELL.sub('<td class="short"', prose[i])
        prose[i] = FLAG.sub(r'<span class="short">\g<0></span>', prose[i])
    return "".join(prose)


def picture(text: str) -> Path:
    return HERE / "diagrams" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.svg"


def commands() -> str:
    os.environ["COLUMNS"] = "100"
    return "\n\n".join(
        f"## {name}\n\n{line[0].upper()}{line[1:]}.\n\n" + helps(build_parser(name), name)
        for name, (_, line) in COMMANDS.items()
    )


def helps(parser: argparse.ArgumentParser, name: str) -> str:
    """The help of a command, and below it that of its own subcommands."""
    actions = parser._actions
    below = [action.choices for action in actions if isinstance(action, argparse._SubParsersAction)]
    if name in COMMANDS:  # the parser of the whole tool: the command's own is one below
        return helps(below[0][name], f"collage-mpi {name}")
    parts = [f"```text\n{parser.format_help().strip()}\n```"]
    parts += [helps(child, f"{name} {word}") for each in below for word, child in each.items()]
    return "\n\n".join(parts)
