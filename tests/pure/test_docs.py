"""What the documents and the check point to is there: files, commands, flags, tests."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from collage_mpi.commands import COMMANDS
from collage_mpi.commands.parser import build_parser
from collage_mpi.errors import ExitCode
from collage_mpi.results import Results

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
PAGES += [ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("jobs/slurm/*.md"))]
PAGES += sorted(ROOT.glob("analysis/reports/**/*.md"))
REPORTS = [page for page in PAGES if "reports" in page.parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def flags_of(command: str) -> set[str]:
    """Every flag of a command, those of its own subcommands too."""
    parsers = [build_parser(command)]
    found: set[str] = set()
    while parsers:
        parser = parsers.pop()
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page):
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"collage-mpi ([a-z].*)", text):
        line = re.split(r"[`#;|]|&&", line)[0]
        words = line.replace("launch -n", "launch --ranks").split()
        if words[0] not in COMMANDS:
            continue  # prose: "collage-mpi runs ..."
        commands = [word for word in words if word in COMMANDS]
        known = set().union(*(flags_of(command) for command in commands))
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line):
            assert flag in known, f"{page.name}: collage-mpi {words[0]} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_and_tests_that_a_page_names_are_there(page):
    """But for reports whose figures are of a revision that they name."""
    text = page.read_text()
    if "Revision `" in text:
        return
    for name in re.findall(r"\b(?:analysis|tests|collage_mpi|data_prep)/[\w/]+\.(?:py|sh)\b", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", REPORTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_report_opens_with_its_result(page):
    first = page.read_text().split("\n\n")[1]
    assert first[0] not in "#|`!<-", f"{page.name} opens with {first[:20]!r}"
    assert len(re.findall(r"[.](?=\*|\s|$)", first)) == 3, f"{page.name} needs three sentences"


def test_what_a_page_says_of_results_in_python_is_there():
    known = {*dir(Results), *Results.__dataclass_fields__}
    for page in PAGES:
        assert set(re.findall(r"`run\.(\w+)(?!\.json)", page.read_text())) <= known, page.name


def test_every_exit_code_is_explained():
    page = (ROOT / "docs" / "faults.md").read_text()
    said = {int(code) for code in re.findall(r"^\| (\d) \|", page, re.M)}
    assert said | {ExitCode.DEFECT} == set(ExitCode)
    commented = re.findall(r"= \d  # \w", inspect.getsource(ExitCode))  # the site's table
    assert len(commented) == len(ExitCode)


def test_files_that_a_change_touches_are_there():
    """The modules in the table of CONTRIBUTING.md, which are named without the package."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    table = page.partition("| change | files |")[2].partition("\n\n")[0]
    for name in re.findall(r"`([a-z_]+/[a-z_/]*)`", table):
        path = ROOT / "collage_mpi" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_the_check_runs_every_folder_of_tests():
    run = re.findall(r"^ *tests mpich (.*)$", (ROOT / "tests" / "run.sh").read_text(), re.M)
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert {str(folder.relative_to(ROOT)) for folder in folders} <= set(" ".join(run).split())
