"""Model cards: what a network is, how it was made, what it is worth, from `evaluate --json`.

    python analysis/model_cards.py REPORT.json ... --out DIR

Writes a card for each network of the reports, and README.md with a line each, as in
analysis/reports/cards.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.settings.flags import flag, own_fields
from collage_mpi.system.fields import about, default_of
from collage_mpi.system.files import save_file, writing
from collage_mpi.training.settings import DISTILLATION, TRAINING, TrainSettings
from collage_mpi.training.threshold import AT

Report = Mapping[str, Any]

_ALWAYS = ("epochs", "batch", "seed")  # said in a card's command; others where no default
_SAID_APART = ("flips", "precision")  # by another flag; what auto made of it


def main(words: Sequence[str] | None = None) -> int:
    """Reports in, a folder of Markdown out; the exit code."""
    parser = argparse.ArgumentParser(prog="model_cards", description="Model cards from reports.")
    parser.add_argument("reports", nargs="+", type=Path, help="files of evaluate --json")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cards")
    args = parser.parse_args(words)
    try:
        names = write_cards(args.reports, args.out)
    except CollageError as error:
        print(f"model_cards: {error}", file=sys.stderr)
        return int(error.exit_code)
    print("\n".join(str(args.out / name) for name in names))
    return 0


def write_cards(paths: Sequence[Path], out: Path) -> list[str]:
    """Write a card for each network, and README.md with one table of all; the files' names.

    Raises:
        EnvironmentFault, DataFault: a report cannot be read, or is none; `out` cannot be written.
    """
    reports = [read_report(path) for path in paths]
    texts = {
        f"{card_name(entry)}.md": render_card(report, kind)
        for report in reports
        for kind, entry in report["networks"].items()
    }
    texts["README.md"] = render_index(reports)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        save_file(out / name, text.encode())
    return list(texts)


def read_report(path: Path) -> Any:
    """What `evaluate --json` printed. Raises EnvironmentFault, DataFault."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentFault(f"report {path}: cannot read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataFault(f"report {path} is not JSON: {error}") from error
    check_report(report, str(path))
    return report


def check_report(report: Any, name: str) -> None:
    """Raise DataFault unless this is what `evaluate --json` of this version prints."""
    entries = report.get("networks") if isinstance(report, dict) else None
    needed = {"confusion", "flops", "training", "input", "tuning"}
    whole = isinstance(entries, dict) and all(
        isinstance(entry, dict) and needed <= entry.keys() for entry in entries.values()
    )
    if not whole:
        raise DataFault(
            f"{name} is not a report of networks: make one with collage-mpi evaluate --shards ... "
            "--single ... --collage ... --json > FILE"
        )


def card_name(entry: Mapping[str, Any]) -> str:
    """The weights file's name without its suffix."""
    return PurePath(entry["weights"]).stem


def render_card(report: Report, kind: str) -> str:
    """The card of one network of a report, in Markdown."""
    entry = report["networks"][kind]
    ratio = report.get(f"{kind}_over_single")
    parts = [
        f"# {card_name(entry)}",
        _opening(entry, ratio),
        "Made by `analysis/model_cards.py` from the JSON of `collage-mpi evaluate`; do not edit.",
        "## Architecture",
        _table(["", ""], _what(entry)),
        "## Training",
        _training(entry),
        f"```sh\n{train_command(entry)}\n```",
        "## Accuracy and service time",
        _measured(report),
        _table(["", ""], _worth(entry, report, ratio)),
        "## Calibration",
        _calibration(entry),
        _reliability(entry),
        "## Confusion",
        "Rows are labels, columns are answers.",
        _confusion(entry),
    ]
    return "\n\n".join(parts) + "\n"


def _opening(entry: Mapping[str, Any], ratio: Mapping[str, float] | None) -> str:
    """What the network is worth, in three sentences."""
    right = f"{entry['accuracy']:.2%} of {entry['images']:,} images were classified correctly"
    answers = (entry["side"] or 1) ** 2
    call = f"A call answers {answers} image{'s' * (answers > 1)} and takes {_ms(entry)} ms"
    if ratio:
        right += f", {ratio['accuracy_points']:+.2f} points compared with the single network"
        call += f", {ratio['service']:.2f} times as long as a call of the single network"
    return f"{right}. {call}. The expected calibration error of the scores is {entry['ece']:.4f}."


def render_index(reports: Sequence[Report]) -> str:
    """One table of all networks: side x head x cost."""
    found = {
        entry["fingerprint"]: (report, kind)
        for report in reversed(reports)  # of a network in several, the first report counts
        for kind, entry in report["networks"].items()
    }
    networks = sorted(found.values(), key=lambda pair: _place(pair[0]["networks"][pair[1]]))
    titles = ["network", "side", "head", "answers a call", "MFLOP", "service time"]
    titles += ["ratio to the single network's", "accuracy", "points to the single network's"]
    titles += ["corner / edge / centre", "no answer", "ECE", "MB"]
    parts = [
        "# Model cards",
        _result(networks),
        "Made by `analysis/model_cards.py`; each row is a card. Service time is the median of a "
        "call at batch 1. Ratios and points compare with the single network in the same run. ECE "
        "is the expected calibration error.",
        _table(titles, [_index_row(report, kind) for report, kind in networks]),
        _measured(reports[0]),
    ]
    return "\n\n".join(parts) + "\n"


def _place(entry: Mapping[str, Any]) -> tuple[int, float]:
    return entry["side"] or 0, entry["flops"]


def _result(networks: Sequence[tuple[Report, str]]) -> str:
    """What the table shows, in three sentences."""
    right: dict[str, list[float]] = {}
    ratios, answers = [], []
    for report, kind in networks:
        entry, ratio = report["networks"][kind], report.get(f"{kind}_over_single")
        right.setdefault(_kind(entry), []).append(100 * entry["accuracy"])
        if ratio and entry["side"]:
            ratios.append(ratio["service"])
            answers.append(entry["side"] ** 2)
    number = f"{len(networks)} networks were" if len(networks) > 1 else "1 network was"
    shares = [f"{kind} {_span(values, '.2f')} %" for kind, values in right.items()]
    text = f"{number} measured. Right answers, by kind of network: {', '.join(shares)}."
    if ratios:
        text += (
            f" A call of a collage network takes {_span(ratios, '.2f')} times as long as a call "
            f"of the single network, and answers {_span(answers, 'd')} images."
        )
    return text


def _span(values: Sequence[float], form: str) -> str:
    """The least and the largest value, or the one that there is."""
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)


def _kind(entry: Mapping[str, Any]) -> str:
    return SINGLE if entry["side"] is None else COLLAGE


def train_command(entry: Mapping[str, Any]) -> str:
    """The command that trains such a network, file names without their folders."""
    # a record without `keep` is from before there was a choice: the last epoch was kept
    training = {"keep": "last", **(entry["training"] or {})}
    architecture, kind = entry["architecture"], _kind(entry)
    words = [f"collage-mpi train {kind} --shards train-*.h5 --out {card_name(entry)}.safetensors"]
    if kind == COLLAGE:
        words.append(f"--side {entry['side']} --cell-px {entry['cell_px']}")
        reference = "across" in entry["head"]  # only the preset makes such a head
        if entry["head"]["name"] != "grid" and not reference:
            words.append(f"--head {entry['head']['name']}")
    if kind == COLLAGE and reference:
        words.append("--preset reference")
    elif "backbone" in architecture:
        words.append(f"--backbone {architecture['backbone']}")
    else:
        words.append(f"--stem {stem_text(architecture)} --stages {stages_text(architecture)}")
    if architecture.get("norm", "batch") != "batch":
        words.append(f"--norm {architecture['norm']}")
    taught = training.get("teacher") is not None
    if taught:
        words.append(f"--teacher {training.get('teacher_weights', 'single.safetensors')}")
    if training.get("init") is not None:
        words.append(f"--init {training.get('init_weights', 'first.safetensors')}")
    groups = [TRAINING, *([DISTILLATION] if taught else [])]
    for spec in own_fields(TrainSettings):
        if about(spec).group not in groups or kind not in (about(spec).kinds or (kind,)):
            continue
        value, default = training.get(spec.name), default_of(TrainSettings, spec.name, kind)
        if spec.name in _SAID_APART or value is None:
            continue
        if spec.name in _ALWAYS or value != default:
            words.append(f"{flag(spec)} {value}")
    if training.get("limit") is not None:
        words.append(f"--limit {training['limit']}")
    if training.get("flips") is False:
        words.append("--no-flips")
    return _wrapped(words)


def stem_text(architecture: Mapping[str, Any]) -> str:
    """The stem of the architecture in a record, as `train --stem` takes it."""
    return "{stem_width}x{stem_kernel}/{stem_stride}".format_map(architecture)


def stages_text(architecture: Mapping[str, Any]) -> str:
    """Its stages, as `train --stages` takes them."""
    return ",".join(
        f"{s['width']}x{s['blocks']}" + (f"/{s['stride']}" if s["stride"] != 1 else "")
        for s in architecture["stages"]
    )


def _what(entry: Mapping[str, Any]) -> list[list[str]]:
    height, width, channels = entry["input"]
    architecture = entry["architecture"]
    network = f"`{architecture.get('backbone')}`"
    if "backbone" not in architecture:
        network = (
            f"residual, stem `{stem_text(architecture)}`, stages `{stages_text(architecture)}`"
        )
    rows = [
        ["network", network],
        ["input", f"{height} x {width} x {channels}, uint8"],
    ]
    if entry["side"] is not None:
        grid = f"side {entry['side']}, cells of {entry['cell_px']} px"
        rows.append(["collage", f"{grid}, `{entry['head']['name']}` head"])
    return [
        *rows,
        ["answers a call", str((entry["side"] or 1) ** 2)],
        ["classes", ", ".join(entry["class_names"])],
        ["parameters (norms folded)", f"{entry['parameters']:,}"],
        ["MFLOP a call", f"{entry['flops'] / 1e6:.0f}"],
        ["file", f"{entry['bytes'] / 1e6:.2f} MB, SHA-256 `{entry['fingerprint']}`"],
    ]


def _training(entry: Mapping[str, Any]) -> str:
    training = entry["training"] or {}
    sources = sorted(set(map(str, training.get("sources") or ["unknown"])))
    text = (
        f"Data: {'; '.join(sources)}; {training.get('training_images', 0):,} training images, "
        f"{training.get('validation_images', 0):,} validation images (split by the seed). "
        f"{training.get('epochs', '?')} epochs in {training.get('seconds', 0) / 60:.0f} minutes, "
        f"{training.get('precision', '?')}; kept: epoch {training.get('kept_epoch', 'last')}."
    )
    if "validation_accuracy" in training:
        text += f" Validation accuracy {training['validation_accuracy']:.2%}."
    return text


def _worth(
    entry: Mapping[str, Any], report: Report, ratio: Mapping[str, float] | None
) -> list[list[str]]:
    rows = [["accuracy", f"**{entry['accuracy']:.2%}** of {entry['images']:,}"]]
    if ratio:
        single = report["networks"][SINGLE]["accuracy"]
        rows[0][1] += f" (single network {single:.2%}: {ratio['accuracy_points']:+.2f} points)"
    for place, found in entry.get("places", {}).items():
        rows.append([AT[place], f"{found['accuracy']:.2%} of {found['images']:,}"])
    rows += [
        ["no answer", f"{entry['absent']:.2%}"],
        ["mean score of the answers", _score(entry["mean_score"])],
        ["service time, batch 1", f"{_ms(entry)} ms, 10-90 % {_range(entry)} ms"],
    ]
    if ratio:
        rows.append(["service time / single network's", f"**{ratio['service']:.2f}**"])
        rows.append(["MFLOP / single network's", f"{ratio['flops']:.2f}"])
        both = [ratio[k] for k in ("both_right", "only_single_right", f"only_{COLLAGE}_right")]
        rows.append(
            [
                f"both right / only the single network / only the {COLLAGE} network",
                " / ".join(f"{x:.2%}" for x in both),
            ]
        )
    return rows


def _measured(report: Report) -> str:
    data = ", ".join(f"{d['file']} ({d['source']})" for d in report["data"])
    tunings = dict.fromkeys(entry["tuning"] for entry in report["networks"].values())
    return (
        f"On {data}, images in {report['order']} order. Service time: median of "
        f"{report['calls']:,} calls, networks in turn, {'; '.join(tunings)}, on "
        f"{report['device']} with {report['threads']} thread(s), {report['processor']}, torch "
        f"{report['versions']['torch']}. Ranks may take another precision (--precision auto), "
        "with another ratio."
    )


def _calibration(entry: Mapping[str, Any]) -> str:
    text = (
        f"Expected calibration error {entry['ece']:.4f} over {len(entry['reliability'])} bins with "
        f"answers, of 15; temperature {entry['temperature']}, fitted on the validation split."
    )
    training = entry["training"] or {}
    if "validation_ece_untempered" in training:
        text += (
            f" There the error was {training['validation_ece_untempered']:.4f} before and "
            f"{training['validation_ece']:.4f} after."
        )
    return f"{text}\n\n{_accept(entry['accept'])}" if entry.get("accept") else text


def _accept(found: Mapping[str, Any]) -> str:
    return (
        f"Accept threshold {found['confidence']:g} with single network "
        f"`{found['single'][:12]}...`: with a probability of 95 % at least {found['agree']:g} of "
        f"all images, if they are like the {found['drawn']:,} that chose it, get the single "
        f"network's class. Of those that proved it {found['share']:.1%} count and "
        f"{found['changed']:.2%} get another class. Agreement is not accuracy."
    )


def _reliability(entry: Mapping[str, Any]) -> str:
    rows = [
        [f"{b['answers']:,}", f"{b['score']:.3f}", f"{b['accuracy']:.3f}"]
        for b in entry["reliability"]
    ]
    return _table(["answers", "mean score", "share right"], rows)


def _confusion(entry: Mapping[str, Any]) -> str:
    names = entry["class_names"]
    rows = [
        [f"**{name}**", *map(str, row)] for name, row in zip(names, entry["confusion"], strict=True)
    ]
    return _table(["", *names], rows)


def _index_row(report: Report, kind: str) -> list[str]:
    entry, name = report["networks"][kind], card_name(report["networks"][kind])
    ratio = report.get(f"{kind}_over_single")
    places = [f"{p['accuracy']:.1%}" for p in entry.get("places", {}).values()]
    return [
        f"[{name}]({name}.md)",
        str(entry["side"] or ""),
        (entry["head"] or {}).get("name", ""),
        str((entry["side"] or 1) ** 2),
        f"{entry['flops'] / 1e6:.0f}",
        f"{_ms(entry)} ms",
        f"**{ratio['service']:.2f}**" if ratio else "",
        f"{entry['accuracy']:.2%}",
        f"{ratio['accuracy_points']:+.2f}" if ratio else "",
        " / ".join(places),
        f"{entry['absent']:.2%}",
        f"{entry['ece']:.4f}",
        f"{entry['bytes'] / 1e6:.1f}",
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _ms(entry: Mapping[str, Any]) -> str:
    return f"{entry['service_ns'] / 1e6:.2f}"


def _range(entry: Mapping[str, Any]) -> str:
    return f"{entry['service_p10_ns'] / 1e6:.2f} to {entry['service_p90_ns'] / 1e6:.2f}"


def _wrapped(words: Sequence[str]) -> str:
    """Shell words joined by continued lines of at most 90 characters."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > 88:
            lines.append("    " + word)
        else:
            lines[-1] += " " + word
    return " \\\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
