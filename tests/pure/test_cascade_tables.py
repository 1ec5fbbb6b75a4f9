"""The tables of what the shipped collage networks save: made again from what is committed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANSWERS = ROOT / "analysis" / "answers"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "analysis" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


savings = script("savings")


def test_the_table_of_the_docs_is_what_the_answers_give(capsys):
    assert savings.main([]) == 0
    assert capsys.readouterr().out in (ROOT / "docs" / "weights.md").read_text()


def test_the_float32_ratios_are_those_of_the_cards():
    for name, ratios in savings.read_ratios(ANSWERS):
        card = (ROOT / "docs" / "cards" / f"{name}.md").read_text()
        found = re.search(r"\| service time : single's \| \*\*([0-9.]+)\*\* \|", card)
        assert found is not None
        assert ratios["float32"] == float(found[1])


@pytest.mark.parametrize(
    ("ratios", "code", "said"),
    [
        (None, 3, "ratios.csv cannot be read"),
        ("network,float32\nfashion_collage_side3,1\n", 4, "needed are a header"),
        ("network,float32,bfloat16\nfashion_collage_side3,1,x\n", 4, "needed are a header"),
        ("network,float32,bfloat16\nfashion_collage_side3,1,1\n", 4, "side3.npz cannot be read"),
    ],
)
def test_a_folder_without_what_is_needed_is_a_line(ratios, code, said, tmp_path, capsys):
    if ratios is not None:
        (tmp_path / "ratios.csv").write_text(ratios)
    assert savings.main(["--answers", str(tmp_path)]) == code
    assert said in capsys.readouterr().err
