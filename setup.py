"""What a build needs that pyproject.toml cannot say.

README's links lead to the files of the repository at this version, because an index shows the
README without them. The source archive has the same bytes however often and wherever it is built.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
EARLIEST_S = 315_532_800  # 1980-01-01, the earliest date that a wheel can hold


def found(pattern: str, name: str) -> str:
    """What the pattern's group finds in a file of the project."""
    match = re.search(pattern, (ROOT / name).read_text("utf-8"), re.M)
    if match is None:
        raise SystemExit(f"{name} has no line like {pattern}")
    return match[1]


def absolute(text: str, address: str, version: str) -> str:
    """Markdown whose relative links and pictures lead to the repository at this version."""

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/v{version}/{target})"

    return re.sub(r"(!?)\[([^]]*)\]\(([^)\s]+)\)", led, text)


def readme() -> str:
    address = found(r'^Repository = "(.+)"', "pyproject.toml")
    version = found(r'^__version__ = "(.+)"', "collage_mpi/__init__.py")
    return absolute((ROOT / "README.md").read_text("utf-8"), address, version)


class SameBytes(sdist):
    """Sorted members, no owner, one date, and modes that no umask has touched."""

    def make_archive(self, base_name: str, format: str, *_: object, **words: str) -> str:
        path = f"{base_name}.tar.gz"
        date_s = int(os.environ["SOURCE_DATE_EPOCH"])
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", 9, file, mtime=date_s) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.dereference = True  # setuptools links the files into the tree that it packs

            def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = date_s
                info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
                return info

            for member in sorted(Path(words["base_dir"]).rglob("*")):
                archive.add(member, recursive=False, filter=plain)
        return path


if __name__ == "__main__":
    os.umask(0o022)  # else the files that a wheel adds to the package's have the user's modes
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EARLIEST_S))
    setup(
        long_description=readme(),
        long_description_content_type="text/markdown",
        cmdclass={"sdist": SameBytes},
    )
