"""What mkdocs does not know of these pages: diagrams without a script, the help of every command,
every setting and every exit code.

Mermaid's script is 3.5 MB and lives on a CDN; a page that opens from disk has neither, so a diagram
is a picture in diagrams/, named after the text it was drawn from. A new text is drawn when mermaidx
is there (pip install mermaidx), and else it is a warning, which --strict refuses.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import logging
import os
import re
from pathlib import Path
from typing import Any

from collage_mpi.commands import COMMANDS
from collage_mpi.commands.parser import build_parser
from collage_mpi.errors import ExitCode
from collage_mpi.settings.flags import flag, shown_default
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.fields import about

HERE = Path(__file__).parents[1]
FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.M | re.S)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?=[^<>]*</code>)")
SHORT_CELL = re.compile(r"<td(?=[^>]*>(?:<\w+>)?[^<]{1,20}(?:</\w+>[^<]{0,14})?</td>)")
TESTS_CELL = re.compile(r"<td(?=[^>]*><code>tests/)")
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

    text = FENCE.sub(shown, markdown)
    for mark, written in MADE.items():
        if mark in text:
            text = text.replace(mark, written())
    return text


def on_page_content(html: str, **_: Any) -> str:
    """Flags and short cells stay on a line: a browser would break them at their hyphens.

    Cells of tests' names break anywhere, so that what a reader looks for has the width.
    """
    prose = re.split(r"(<pre.*?</pre>)", html, flags=re.S)  # every second one is a block of code
    for i in range(0, len(prose), 2):
        prose[i] = SHORT_CELL.sub('<td class="short"', prose[i])
        prose[i] = TESTS_CELL.sub('<td class="tests"', prose[i])
        prose[i] = FLAG.sub(r'<span class="short">\g<0></span>', prose[i])
    return "".join(prose)


def picture(text: str) -> Path:
    return HERE / "diagrams" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.svg"


def commands() -> str:
    os.environ["COLUMNS"] = "100"
    return "\n\n".join(
        f"## {name}\n\n{line[0].upper()}{line[1:]}.\n\n" + helps(build_parser(name), name)
        for name, line in COMMANDS.items()
    )


def settings() -> str:
    """A table of each group of settings, from their declarations."""
    groups: dict[str, list[str]] = {}
    for spec in dataclasses.fields(RunSettings):
        known = about(spec)
        cells = (f"`{flag(spec)}`", shown_default(spec, spec.default), known.help)
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        groups.setdefault(known.group, []).append(f"| {row} |")
    head = "| setting | default | what it does |\n|---|---|---|\n"
    return "\n\n".join(
        f"## {name[:1].upper()}{name[1:]}\n\n{head}" + "\n".join(rows)
        for name, rows in groups.items()
    )


def exit_codes() -> str:
    """The exit codes with the comments that explain them."""
    rows = re.findall(r"= (\d)  # (.*)", inspect.getsource(ExitCode))
    return "| code | meaning |\n|---|---|\n" + "\n".join(f"| {n} | {text} |" for n, text in rows)


def helps(parser: argparse.ArgumentParser, name: str) -> str:
    """The help of a command, and below it that of its own subcommands."""
    actions = parser._actions
    below = [action.choices for action in actions if isinstance(action, argparse._SubParsersAction)]
    if name in COMMANDS:  # the parser of the whole tool: the command's own is one below
        return helps(below[0][name], f"collage-mpi {name}")
    parts = [f"```text\n{parser.format_help().strip()}\n```"]
    parts += [helps(child, f"{name} {word}") for each in below for word, child in each.items()]
    return "\n\n".join(parts)


MADE = {
    "<!-- commands -->": commands,
    "<!-- settings -->": settings,
    "<!-- exit codes -->": exit_codes,
}
