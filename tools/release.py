"""Everything between the last commit and an upload, in one command:

    python tools/release.py                # in the repository, with `pip install build twine`
    python tools/release.py --rehearse     # the same while the repository has no address yet
    python tools/release.py --address https://HOST/NAME    # only write that address into its files

It refuses a tree whose files do not agree on version, date and address. It builds the committed
tree twice in different folders and compares the bytes, checks the archives, follows every link of
the rendered README, installs the wheel into a fresh environment and runs the demo there. It ends
with the text of the tag and what to type. It tags and uploads nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_WHEEL_BYTES = 10_000_000
NO_NETWORK = r"NewConnectionError|ConnectTimeoutError|No matching distribution found"
NO_CHECKSUM = "0" * 64  # in recipes/, until the archive is built
# Who says which version this is: a file, and the pattern whose group is the version.
VERSIONS = {
    "collage_mpi/__init__.py": r'^__version__ = "(.+)"',
    "CHANGELOG.md": r"^## (\S+) \(",
    "CITATION.cff": r"^version: (\S+)",
    "codemeta.json": r'^  "version": "(.+)"',
    ".zenodo.json": r'^  "version": "(.+)"',
}
DATES = {
    "CHANGELOG.md": r"^## \S+ \((.+)\)",
    "CITATION.cff": r"^date-released: (\S+)",
    "codemeta.json": r'^  "datePublished": "(.+)"',
}
ADDRESSES = {
    "CITATION.cff": r"^repository-code: (\S+)",
    "codemeta.json": r'^  "codeRepository": "(.+)"',
}


# Before which line a file gets its address.
NEW_LINES = {
    "CITATION.cff": ("license: ", "repository-code: {}"),
    "codemeta.json": ('  "license": ', '  "codeRepository": "{}",'),
}


def found(patterns: dict[str, str], root: Path = ROOT) -> dict[str, str | None]:
    """By file, what its pattern finds first; None where it finds nothing."""
    texts = {name: (root / name).read_text("utf-8") for name in patterns}
    matches = {name: re.search(patterns[name], text, re.M) for name, text in texts.items()}
    return {name: match[1] if match else None for name, match in matches.items()}


def address(root: Path = ROOT) -> str:
    """The repository's address, which pyproject.toml alone decides."""
    told = found({"pyproject.toml": r'^Repository = "(.+)"'}, root)["pyproject.toml"]
    return told or ""


def set_address(repository: str, root: Path = ROOT) -> None:
    """Write the repository's address into each file that names it."""
    path = root / "pyproject.toml"
    line = f'Repository = "{repository}"'
    path.write_text(
        re.sub('^Repository = ".+"', line, path.read_text("utf-8"), flags=re.M), "utf-8"
    )
    for name, (before, form) in NEW_LINES.items():
        text = re.sub(f"{ADDRESSES[name]}.*\n", "", (root / name).read_text("utf-8"), flags=re.M)
        added = f"{form.format(repository)}\n{before}"
        (root / name).write_text(re.sub(f"^{before}", added, text, flags=re.M), "utf-8")


def version() -> str:
    return found(VERSIONS)["collage_mpi/__init__.py"] or ""


def is_placeholder(repository: str) -> bool:
    return not repository or ".invalid/" in repository


def disagreements(root: Path = ROOT) -> list[str]:
    """What the files of a release say differently, a line each."""
    wrong = []
    for what, patterns in (("version", VERSIONS), ("date", DATES)):
        told = found(patterns, root)
        if len(set(told.values())) > 1 or None in told.values():
            wrong.append(f"the {what} differs: {told}")
    repository = None if is_placeholder(address(root)) else address(root)
    for name, told in found(ADDRESSES, root).items():
        if told != repository:
            wrong.append(f"{name} names the repository {told}, pyproject.toml {repository}")
    return wrong


def changes(text: str, version: str) -> str:
    """The section of CHANGELOG.md for a version."""
    section = re.search(rf"^## {re.escape(version)} .*?\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return section[1].strip() if section else ""


def anchors(page: str) -> set[str]:
    """The anchors of a Markdown page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", head).lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


def dead_links(description: str, repository: str, version: str, root: Path) -> Iterator[str]:
    """Links of a rendered README that lead to nothing in the tree at `root`."""
    for target in re.findall(r"\]\(([^)\s]+)\)", description):
        under = re.fullmatch(rf"{re.escape(repository)}/(?:blob|raw)/v{version}/(.*)", target)
        if under is None:
            if "://" not in target or target.startswith(repository):
                yield target
            continue
        name, _, anchor = under[1].partition("#")
        path = root / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            yield target


def missing(root: Path = ROOT) -> list[str]:
    """What a release needs that this machine or folder lacks, a line each."""
    remedies = {
        "build": "pip install build",
        "twine": "pip install twine",
        "ensurepip": "on Debian and Ubuntu apt install python3-venv",
    }
    specs = {name: find_spec(name) for name in remedies}
    # A folder of that name is found as well, but has no origin.
    lacking = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    wrong = [f"this Python has no module {name}: {remedies[name]}" for name in lacking]
    if shutil.which("git") is None:
        wrong.append("there is no git: install it")
    elif not (root / ".git").exists():
        wrong.append(f"{root} is not a git repository: a release is built from a commit")
    return wrong


def run(*words: str | Path, folder: Path | None = None) -> str:
    """The output of a command; it ends the release if it fails."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}"
        if re.search(NO_NETWORK, told):
            told += "\npip found no index: a release needs a network, or PIP_INDEX_URL"
        raise SystemExit(told)
    return done.stdout


def say(words: str) -> None:
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {words}", flush=True)


BEGAN = time.monotonic()


def build(scratch: Path) -> list[Path]:
    """The committed tree, built twice in folders of different names, byte for byte alike."""
    made = []
    for name in ("first", "second-and-longer"):
        tree = scratch / name
        tree.mkdir()
        archive = scratch / f"{name}.tar"
        run("git", "archive", "--output", archive, "HEAD", folder=ROOT)
        with tarfile.open(archive) as packed:
            packed.extractall(tree, filter="data")
        run(sys.executable, "-m", "build", "--outdir", tree / "dist", tree)
        made.append(sorted((tree / "dist").iterdir()))
    for one, other in zip(*made, strict=True):
        if one.read_bytes() != other.read_bytes():
            raise SystemExit(f"{one.name}: two builds of one tree differ")
    return made[0]


def try_out(wheel: Path, scratch: Path) -> None:
    """The wheel in an environment that has nothing else, and its demo."""
    home = scratch / "env"
    venv.create(home, with_pip=True)
    run(home / "bin/pip", "install", "--quiet", f"{wheel}[mpich,plot]")
    say("the wheel is installed")
    run(home / "bin/collage-mpi", "demo", "--out", scratch / "demo", folder=scratch)


def fill_recipes(checksum: str, folder: Path) -> None:
    """Copies of the recipes that name the archive's checksum."""
    for path in sorted((ROOT / "recipes").rglob("*")):
        if path.is_file():
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text("utf-8").replace(NO_CHECKSUM, checksum), "utf-8")


def refusals(rehearse: bool) -> list[str]:
    """Why nothing is built, a line each."""
    wrong, repository = disagreements(), address()
    if is_placeholder(repository) and not rehearse:
        wrong.append(f"{repository} is a placeholder: python tools/release.py --address URL")
    if run("git", "status", "--porcelain", folder=ROOT).strip():
        wrong.append("the working tree has changes that are not committed")
    for tag in run("git", "tag", "--points-at", "HEAD", folder=ROOT).split():
        if re.match(r"v\d", tag) and tag != f"v{version()}":
            wrong.append(f"the commit has the tag {tag}, but its files say version {version()}")
    if not changes((ROOT / "CHANGELOG.md").read_text("utf-8"), version()):
        wrong.append(f"CHANGELOG.md says nothing of {version()}")
    return wrong


def check(archive: Path, wheel: Path, tree: Path) -> None:
    """What an index would refuse or show wrongly."""
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    if wheel.stat().st_size > MOST_WHEEL_BYTES:
        raise SystemExit(f"{wheel.name} has {wheel.stat().st_size} bytes; 10 MB are allowed")
    with tarfile.open(archive) as packed:
        file = packed.extractfile(f"collage_mpi-{version()}/PKG-INFO")
        assert file is not None
        dead = list(dead_links(file.read().decode("utf-8"), address(), version(), tree))
    if dead:
        raise SystemExit(f"the rendered README has dead links: {', '.join(dead)}")


def hand_over(archive: Path, wheel: Path, rehearse: bool) -> None:
    """The tag's text, the recipes with the checksum, and what to type."""
    out, said = archive.parent, changes((ROOT / "CHANGELOG.md").read_text("utf-8"), version())
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (archive, wheel)}
    listed = "\n".join(f"{sums[p.name]}  {p.name}" for p in (archive, wheel))
    (out / "tag.txt").write_text(f"collage_mpi {version()}\n\n{said}\n\n{listed}\n", "utf-8")
    fill_recipes(sums[archive.name], out)
    for path in (archive, wheel):
        print(f"{path.name}: {path.stat().st_size:,} bytes, SHA-256 {sums[path.name]}")
    print(f"The recipes with that checksum are in {out}/recipes.")
    if rehearse:
        print("This was a rehearsal: upload nothing of it.")
        return
    # Without --cleanup git takes the headings of the changes for comments.
    print(f"""Now, by hand:
  git tag --sign --cleanup=whitespace --file {out}/tag.txt v{version()}
  git push origin v{version()}
  twine upload {archive} {wheel}""")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="accept a placeholder address")
    parser.add_argument("--address", metavar="URL", help="write the address into its files")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the archives")
    parser.add_argument("--no-demo", action="store_true", help="install nothing and run no demo")
    given = parser.parse_args()
    if given.address:
        set_address(given.address.rstrip("/"))
        return 0
    wrong = missing() or refusals(given.rehearse)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 2
    say(f"version {version()}: all files agree")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheel, archive = (Path(shutil.copy(path, given.out)) for path in build(scratch))
        say("built twice, the same bytes")
        check(archive, wheel, scratch / "first")
        say("twine check passes; every link of the rendered README leads to a file of the tree")
        if not given.no_demo:
            try_out(wheel, scratch)
            say("the demo ran from the wheel")
    hand_over(archive, wheel, given.rehearse)
    return 0


if __name__ == "__main__":
    sys.exit(main())
