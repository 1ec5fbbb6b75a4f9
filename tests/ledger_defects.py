"""Plants the defects of `ledger_planted.toml` one by one, and says which plays find each.

    python -m tests.ledger_defects [--seeds 300] [NUMBER ...]

A defect lies in a fork that loads the ledger anew with another text; no file changes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.util
import inspect
import os
import random
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LEDGER = Path(__file__).parents[1] / "collage_mpi" / "ledger"
PLANTED = Path(__file__).with_name("ledger_planted.toml")


class Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads modules with other texts."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in self._texts else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._texts[module.__name__], module.__name__, "exec"), module.__dict__)


def texts_of(changes: list[list[str]]) -> dict[str, str]:
    """Module -> its text with the defect."""
    texts: dict[str, str] = {}
    for file, old, new in changes:
        name = f"collage_mpi.ledger.{file.removesuffix('.py')}"
        text = texts.get(name) or (LEDGER / file).read_text()
        assert text.count(old) == 1, f"{text.count(old)} times in {file}: {old}"
        texts[name] = text.replace(old, new)
    return texts


def how_found(seeds: int) -> str:
    """The first play that finds the planted defect."""
    from tests.ledger_bounded import cases, play, short_times
    from tests.ledger_plays import damaged_play, random_play

    with short_times():
        for owners in (2, 3):
            for case in random.Random(owners).sample([*cases(owners, 2)], 100):
                for cell in (3, 2, 1):
                    try:
                        play(owners, cell, cell, case)
                    except Exception as error:
                        return f"bounded, {owners} owners, cells of {cell}, {case}: {error}"
    sys.path.insert(0, str(Path(__file__).with_name("pure")))
    for name, test in vars(importlib.import_module("test_ledger")).items():
        if name.startswith("test_") and not inspect.signature(test).parameters:
            try:
                test()
            except (Exception, pytest.fail.Exception) as error:
                return f"{name}: {type(error).__name__}: {error}"
    for seed in range(seeds):
        for what in (damaged_play, random_play):
            try:
                what(seed)
            except Exception as error:
                return f"{what.__name__} {seed}: {type(error).__name__}: {error}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, help="of the defects; by default all")
    parser.add_argument("--seeds", type=int, default=300, help="of the random plays")
    args = parser.parse_args()
    planted = tomllib.loads(PLANTED.read_text())["planted"]
    asked = [each for each in planted if not args.numbers or each["number"] in args.numbers]
    missed = 0
    for each in asked:
        texts = texts_of(each["changes"])
        reading, writing = os.pipe()
        if os.fork() == 0:
            sys.meta_path.insert(0, Planted(texts))
            os.write(writing, how_found(args.seeds).encode()[:300])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            how = told.read()
        os.wait()
        missed += not how
        print(f"{each['number']:2} {each['kind']}\n   {how or 'not found'}", flush=True)
    print(f"{len(asked) - missed} of {len(asked)} found")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
