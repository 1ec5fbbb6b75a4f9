"""What a release says of itself: one version, one date, one address, and links that lead on."""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files that a release is named in."""
    for name in (*release.VERSIONS, *release.ADDRESSES, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_all_files_agree_on_version_date_and_address() -> None:
    assert release.disagreements() == []
    assert release.changes((ROOT / "CHANGELOG.md").read_text(), release.version())


SAYS_WHAT_IT_IS = ("README.md", "pyproject.toml", "mkdocs.yml", "codemeta.json", "CITATION.cff")
SAYS_WHAT_IT_IS += (".zenodo.json", "recipes/conda/recipe.yaml", "collage_mpi/commands/parser.py")
SAYS_WHAT_IT_IS += ("recipes/spack/py-collage-mpi/package.py",)
SAYS_WHAT_IT_IS += ("recipes/easybuild/collage_mpi-1.0.0-foss-2025b.eb",)


@pytest.mark.parametrize("name", SAYS_WHAT_IT_IS)
def test_every_file_says_with_the_same_words_what_the_package_is(name: str) -> None:
    text = re.sub(r'[\s"*]+', " ", (ROOT / name).read_text())
    assert "Classify very many images over MPI: every image gets exactly one result" in text
    assert "a slow rank need not hold up the others" in text


@pytest.mark.parametrize("name", release.VERSIONS)
def test_a_file_of_another_version_is_named(tree: Path, name: str) -> None:
    change(tree / name, release.version(), "9.9.9")
    [told] = release.disagreements(tree)
    assert f"'{name}': '9.9.9'" in told


@pytest.mark.parametrize("name", release.DATES)
def test_a_file_of_another_date_is_named(tree: Path, name: str) -> None:
    change(tree / name, release.found(release.DATES)[name] or "", "2031-01-01")
    [told] = release.disagreements(tree)
    assert f"'{name}': '2031-01-01'" in told


def test_an_address_is_in_every_file_or_in_none(tree: Path) -> None:
    (old,) = {release.address(tree)}
    change(tree / "pyproject.toml", old, "https://example.org/c")
    wrong = release.disagreements(tree)
    assert len(wrong) == len(release.ADDRESSES)
    assert all("https://example.org/c" in line for line in wrong)


def test_one_command_writes_the_address_into_every_file(tree: Path) -> None:
    for repository in ("https://example.org/first", "https://example.org/c"):
        release.set_address(repository, tree)
        assert release.address(tree) == repository
        assert set(release.found(release.ADDRESSES, tree).values()) == {repository}
        assert release.disagreements(tree) == []
    json.loads((tree / "codemeta.json").read_text())
    for name in release.ADDRESSES:
        assert (tree / name).read_text().count("example.org") == 1


def test_the_section_of_a_version_ends_where_the_next_begins() -> None:
    text = "# C\n\n## 1.0.0 (2026-01-02)\n\n- a\n\n### b\n\n- c\n\n## 0.1.0\n\n- d\n"
    assert release.changes(text, "1.0.0") == "- a\n\n### b\n\n- c"
    assert release.changes(text, "2.0.0") == ""


def test_readme_links_lead_to_the_repository_at_the_version() -> None:
    text = "[a](docs/a.md#b) ![p](i.png) [w](https://x.org/y) [h](#here)"
    assert SETUP["absolute"](text, "https://r.org/c", "1.0.0") == (
        "[a](https://r.org/c/blob/v1.0.0/docs/a.md#b) ![p](https://r.org/c/raw/v1.0.0/i.png) "
        "[w](https://x.org/y) [h](#here)"
    )


def test_every_link_of_the_rendered_readme_leads_to_the_tree() -> None:
    text = SETUP["readme"]()
    assert f"{release.address()}/raw/v{release.version()}/docs/images/" in text
    assert list(release.dead_links(text, release.address(), release.version(), ROOT)) == []


@pytest.mark.parametrize("target", ["docs/none.md", "README.md#no-such-heading"])
def test_a_link_that_leads_nowhere_is_named(target: str) -> None:
    link = f"https://r.org/c/blob/v1.0.0/{target}"
    found = release.dead_links(f"[x]({link}) [y](docs/z.md)", "https://r.org/c", "1.0.0", ROOT)
    assert list(found) == [link, "docs/z.md"]


def test_an_archive_has_the_same_bytes_whatever_the_files_modes_and_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "315532800")
    made = []
    for name, mode in (("a", 0o600), ("b", 0o664)):
        folder = tmp_path / name
        (folder / "c-1").mkdir(parents=True)
        for file in ("z", "a"):
            (folder / "c-1" / file).write_text("same")
            (folder / "c-1" / file).chmod(mode)
        monkeypatch.chdir(folder)
        packed = SETUP["SameBytes"].make_archive(None, "c", "gztar", base_dir="c-1")
        made.append((folder / packed).read_bytes())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        assert archive.getnames() == ["c-1/a", "c-1/z"]
        assert {(m.mode, m.uid, m.mtime) for m in archive} == {(0o644, 0, 315532800)}


def test_what_the_machine_lacks_is_said_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = release.missing(tmp_path)
    assert [line.split(": ")[-1] for line in told] == [
        "pip install build",
        "pip install twine",
        "on Debian and Ubuntu apt install python3-venv",
        "install it",
    ]


def test_a_folder_without_a_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release.shutil, "which", lambda name: "/usr/bin/git")
    assert release.missing(tmp_path)[-1].startswith(f"{tmp_path} is not a git repository")


def test_an_index_that_cannot_be_reached_is_said_to_be_so() -> None:
    pip = "print('No matching distribution found for setuptools'); raise SystemExit(1)"
    with pytest.raises(SystemExit, match="a release needs a network"):
        release.run(sys.executable, "-c", pip)


@pytest.mark.parametrize("rehearse", [False, True])
def test_the_tag_keeps_its_headings_and_a_rehearsal_says_to_upload_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rehearse: bool
) -> None:
    made = [tmp_path / "dist" / name for name in ("c.tar.gz", "c.whl")]
    made[0].parent.mkdir()
    for path in made:
        path.write_bytes(b"bytes")
    release.hand_over(*made, rehearse)
    told = capsys.readouterr().out
    assert "\n### " in (made[0].parent / "tag.txt").read_text()
    assert ("upload nothing" in told) == rehearse
    assert ("git tag --sign --cleanup=whitespace" in told) == (not rehearse)


def test_a_release_is_refused_while_the_address_is_a_placeholder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release, "run", lambda *words, folder=None: "")
    monkeypatch.setattr(release, "address", lambda: "https://repository.invalid/c")
    monkeypatch.setattr(release, "disagreements", list)
    remedy = "https://repository.invalid/c is a placeholder: python tools/release.py --address URL"
    assert release.refusals(rehearse=False) == [remedy]
    assert release.refusals(rehearse=True) == []


def test_a_tag_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = f"v{release.version()}\nv9.9.9\nvery-good\n"
    monkeypatch.setattr(release, "run", lambda *words, folder: tags if "tag" in words else "")
    told = release.refusals(rehearse=True)
    assert told == [f"the commit has the tag v9.9.9, but its files say version {release.version()}"]
