"""Model cards from reports."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from collage_mpi.commands.parser import read_command
from collage_mpi.models.architecture import (
    REFERENCE_BACKBONES,
    REFERENCE_HEAD,
    parse_stages,
)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "analysis" / "model_cards.py"
SPEC = importlib.util.spec_from_file_location("model_cards", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
cards = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cards)


def make_entry(name: str, side: int | None) -> dict[str, Any]:
    stages = [{"width": 8, "blocks": 1, "stride": 1}, {"width": 16, "blocks": 2, "stride": 2}]
    return {
        "weights": f"/somewhere/{name}.safetensors",
        "fingerprint": name * 3,
        "bytes": 1_250_000,
        "side": side,
        "cell_px": side and 28,
        "head": side and {"name": "yolo", "squares": 3, "anchors": [[1, 1]]},
        "input": [28 * (side or 1), 28 * (side or 1), 1],
        "architecture": {
            "stem_width": 8,
            "stem_kernel": 4,
            "stem_stride": 2,
            "stages": stages,
            "norm": "batch",
        },
        "class_names": ["shirt", "shoe"],
        "temperature": 0.75,
        "training": {
            "epochs": 7,
            "batch": 8,
            "seed": 1,
            "learning_rate": 0.1,
            "ema": 0.998,
            "flips": False,
            "blank_share": 0.25,
            "teacher": "abc",
            "teacher_weights": "single.safetensors",
            "distill_weight": 0.5,
            "sources": ["train", "train"],
            "training_images": 57000,
            "validation_images": 3000,
            "seconds": 1200,
            "precision": "bfloat16",
            "kept_epoch": 6,
            "validation_accuracy": 0.91,
            "validation_ece": 0.0111,
            "validation_ece_untempered": 0.0777,
        },
        "flops": 300e6,
        "parameters": 12345,
        "images": 100,
        "accuracy": 0.9,
        "absent": 0.0,
        "ece": 0.0123,
        "mean_score": 0.91,
        "reliability": [{"answers": 100, "score": 0.91, "accuracy": 0.9}],
        "confusion": [[45, 5], [5, 45]],
        "tuning": "float32, channels-last",
        "service_ns": 3_000_000,
        "service_p10_ns": 2_900_000,
        "service_p90_ns": 3_300_000,
        **({"places": {"corner": {"images": 100, "accuracy": 0.9}}} if side else {}),
    }


def make_report() -> dict[str, Any]:
    return {
        "device": "cpu",
        "threads": 1,
        "calls": 1000,
        "order": "file",
        "data": [{"file": "t10k.h5", "source": "test images", "fingerprint": "f"}],
        "processor": "A Processor",
        "versions": {"collage_mpi": "0", "torch": "2"},
        "networks": {"single": make_entry("one", None), "collage": make_entry("many", 2)},
        "collage_over_single": {
            "accuracy_points": -0.5,
            "flops": 1.0,
            "parameters": 1.0,
            "service": 1.25,
            "both_right": 0.88,
            "only_single_right": 0.02,
            "only_collage_right": 0.01,
        },
    }


def test_a_card_says_what_was_measured() -> None:
    card = cards.render_card(make_report(), "collage")
    for text in ("**90.00%** of 100", "-0.50 points", "**1.25**", "0.0123", "at a corner"):
        assert text in card
    for text in ("| **shirt** | 45 | 5 |", "t10k.h5 (test images)", "A Processor", "epoch 6"):
        assert text in card
    assert "networks in turn, float32, channels-last, on cpu" in card
    assert "the error was 0.0777 before and 0.0111 after" in " ".join(card.split())
    assert "/somewhere" not in card  # where a file lay is nobody's business
    assert "single network's" in card
    assert "single network's" not in cards.render_card(make_report(), "single")


@pytest.mark.parametrize("kind", ["single", "collage"])
def test_the_command_of_a_card_can_be_typed(kind: str) -> None:
    command = cards.train_command(make_report()["networks"][kind]).replace("\\\n", " ")
    words = command.split()[1:]
    _, args = read_command(words)
    epochs, seed, ema, flips = map(args.said, ("epochs", "seed", "ema", "flips"))
    assert (args.kind, epochs, seed, ema) == (kind, 7, 1, 0.998)
    assert args.said("keep") == "last"  # what a record that does not say so means
    assert (args.stem, args.stages, flips) == ("8x4/2", "8x1,16x2/2", False)
    assert (args.teacher, args.said("distill_weight")) == ("single.safetensors", 0.5)
    if kind == "collage":
        assert (args.said("side"), args.head, args.said("blank_share")) == (2, "yolo", 0.25)


def test_the_reference_network_s_command_is_its_preset() -> None:
    entry = make_report()["networks"]["collage"]
    entry["architecture"] = {"backbone": REFERENCE_BACKBONES["collage"]}
    entry["head"] = REFERENCE_HEAD.to_dict()
    _, args = read_command(cards.train_command(entry).replace("\\\n", " ").split()[1:])
    assert (args.preset, args.head, args.backbone) == ("reference", None, None)


def test_a_card_s_command_leaves_out_what_its_kind_has_by_default() -> None:
    entry = make_entry("one", None)
    for rate, said in ((0.1, False), (0.05, True)):
        entry["training"] = {**entry["training"], "learning_rate": rate, "shift_px": 2}
        words = cards.train_command(entry).replace("\\\n", " ").split()[1:]
        assert ("--lr" in words) == said
        assert "--shift-px" not in words
        assert read_command(words)[1].said("learning_rate") == rate


def test_the_table_has_each_network_once() -> None:
    index = cards.render_index([make_report(), make_report()])
    rows = [line for line in index.splitlines() if line.startswith("| [")]
    assert [row.split("]")[0] for row in rows] == ["| [one", "| [many"]
    assert "**1.25**" in rows[1]
    assert (
        "2 networks were measured. Right answers, by kind of network: single 90.00 %, collage "
        "90.00 %. A call of a collage network takes 1.25 times as long as a call of the single "
        "network, and answers 4 images.\n"
    ) in index


def test_the_index_opens_with_the_range_of_its_networks() -> None:
    other = make_report()
    other["networks"] = {"collage": {**make_entry("more", 3), "accuracy": 0.8}}
    other["collage_over_single"]["service"] = 0.5
    index = cards.render_index([make_report(), other])
    assert "single 90.00 %, collage 80.00 to 90.00 %" in index
    assert "takes 0.50 to 1.25 times as long" in index
    assert "answers 4 to 9 images" in index
    other["networks"] = {"single": make_entry("alone", None)}
    assert "\n\n1 network was measured." in cards.render_index([other])


def test_the_script_writes_cards_and_refuses_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    report.write_text(json.dumps(make_report()))
    assert cards.main([str(report), "--out", str(tmp_path / "cards")]) == 0
    assert sorted(p.name for p in (tmp_path / "cards").iterdir()) == [
        "README.md",
        "many.md",
        "one.md",
    ]
    for text, code in (("{}", 4), ("no", 4), ("[]", 4)):
        report.write_text(text)
        assert cards.main([str(report), "--out", str(tmp_path / "x")]) == code
    assert cards.main([str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 3
    assert "collage-mpi evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../escape", "/tmp/x", "..", ".", "a/../b", "/", ""])
def test_a_card_stays_in_its_folder(name: str) -> None:
    file = f"{cards.card_name({'weights': name})}.md"
    assert "/" not in file
    assert file not in ("", ".", "..")


def test_stages_are_written_as_they_are_read() -> None:
    text = "48x1,96x2/2,192x2/2"
    assert cards.stages_text({"stages": [asdict(stage) for stage in parse_stages(text)]}) == text


SHIPPED = sorted((ROOT / "collage_mpi" / "data").glob("*.safetensors"))


@pytest.mark.parametrize("weights", SHIPPED, ids=lambda path: path.stem)
def test_a_network_that_ships_has_its_card(weights: Path) -> None:
    folder = ROOT / "analysis" / "reports" / "cards"
    card = (folder / f"{weights.stem}.md").read_text(encoding="utf-8")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert f"[{weights.stem}]({weights.stem}.md)" in (folder / "README.md").read_text("utf-8")
    assert f"`{weights.stem}`" in (ROOT / "docs" / "networks.md").read_text("utf-8")
