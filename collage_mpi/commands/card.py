"""`collage-mpi card REPORT.json ...`: model cards and their table from evaluate's reports.

Owns: the flags and the files. Does not know: what a card says (training.cards).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from collage_mpi.errors import DataFault, EnvironmentFault


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Reports in, a folder of Markdown out."""
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT.json", help="evaluate --json"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the cards"
    )


def execute(args: argparse.Namespace) -> int:
    """Write a card for each network, and README.md with one table of all."""
    from collage_mpi.training.cards import card_name, render_card, render_index

    reports = [_read(path) for path in args.reports]
    texts = {
        f"{card_name(entry)}.md": render_card(report, kind)
        for report in reports
        for kind, entry in report["networks"].items()
    }
    texts["README.md"] = render_index(reports)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (args.out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"cannot write cards to {args.out}: {error.strerror}") from error
    print("\n".join(str(args.out / name) for name in texts))
    return 0


def _read(path: Path) -> Any:
    from collage_mpi.training.cards import check_report

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentFault(f"report {path}: cannot read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataFault(f"report {path} is not JSON: {error}") from error
    check_report(report, str(path))
    return report
