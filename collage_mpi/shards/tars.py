"""Source for pictures in tar files with the layout of WebDataset. Nothing is extracted: pictures
are read from the tar file, so the names of members are never used as paths.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from collage_mpi.errors import DataFault
from collage_mpi.shards.members import Listing, Member, name_text
from collage_mpi.shards.pictures import SUFFIXES
from collage_mpi.shards.remote import network_faults, opened, stat_of
from collage_mpi.shards.source import MemberSource, ReadAs
from collage_mpi.system.files import reading

LABEL_KEYS = ("cls", "label", "class", "class_name")  # in a .json member; the first that exists
LARGEST_LABEL_BYTES = 1 << 20
BLOCK_BYTES = 512  # of the tar format
LARGEST_CLASS = 2**31 - 1  # results keep a label as int32


class LabelFault(DataFault):
    """The labels cannot be used. The pictures may be sound."""


# A picture and its class from the tar file: a number, a name, or None.
Sample = tuple[Member, int | str | None]


def list_tars(
    paths: Sequence[Path],
    names: Sequence[str] | None = None,
    *,
    label_key: str | None = None,
    picture: str | None = None,
    labels: bool = True,
) -> Listing:
    """Pictures of tar files, in the order of the files.

    Args:
        paths: tar files. They must not be compressed, because pictures are read in any order.
        names: the classes in order; by default the sorted class names. Classes given by number
            have no names by default.
        label_key: key of the label in `.json` members; by default the first of `LABEL_KEYS`
            that exists.
        picture: the extension of the image if a sample has several, such as "jpg".
        labels: if False, the pictures get no labels.

    Raises:
        EnvironmentFault: a file cannot be read.
        DataFault: a file is damaged, compressed or truncated, or its labels cannot be used. A
            picture whose own label cannot be read is listed with a `fault`, unless all are so.
    """
    samples: list[Sample] = []
    for path in paths:
        with reading(path):
            samples += _samples(path, label_key, picture)
    if not labels:
        samples = [(replace(member, fault=None), None) for member, _ in samples]
    if not samples:
        raise DataFault(f"{paths[0]}: no picture in it. Pictures end in {', '.join(SUFFIXES)}.")
    good = [sample for sample in samples if sample[0].fault is None]
    if not good:
        raise LabelFault(f"{samples[0][0].id}: {samples[0][0].fault}")
    found, classes = _resolve(good, None if names is None else tuple(names))
    numbers = iter(found)
    members = (m if m.fault else replace(m, label=next(numbers)) for m, _ in samples)
    return Listing(tuple(members), classes)


def _samples(path: Path, label_key: str | None, picture: str | None) -> Iterator[Sample]:
    pictures: dict[str, tuple[str, Member]] = {}  # key -> (extension, member)
    answers: dict[str, int | str] = {}
    faults: dict[str, str] = {}  # key -> why its label cannot be read
    with network_faults(path), opened(path) as stream:
        for info in _headers(path, stream):
            key, extension = split_key(info.name)
            if f".{extension}".endswith(SUFFIXES):
                if picture is not None and extension != picture.lower().lstrip("."):
                    continue
                _only_one(path, key, extension, pictures)
                name = name_text(f"{path.name}:{info.name}")
                where = Member(name, str(path), info.size, info.offset_data)
                pictures[key] = (extension, where)
            elif extension.rpartition(".")[2] in ("cls", "json"):
                try:
                    answer = _answer(stream, info, extension, label_key)
                except DataFault as fault:
                    faults[key] = str(fault)
                    continue
                if answer is not None:
                    answers[key] = answer
    for key, (_, member) in pictures.items():
        yield replace(member, fault=faults.get(key)), answers.get(key)


def _headers(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields the regular members in order. Raises DataFault if the tar file is truncated."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            size = stat_of(path)[0]
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if info.offset_data + info.size > size:
                    raise DataFault(f"{path}: cut off within {name_text(info.name)!r}. Copy it.")
                if info.isreg() and not info.issparse():
                    yield info
            stream.seek(tar.offset)
            end = stream.read(BLOCK_BYTES)
    except (tarfile.TarError, ValueError, UnicodeError) as error:
        raise DataFault(
            f"{path}: not a plain tar file ({error}). If it is compressed, unpack it "
            "(gunzip, unzstd): pictures are read from where they lie in it."
        ) from error
    if len(end) < BLOCK_BYTES or end.strip(b"\0"):
        raise DataFault(f"{path}: damaged or cut off at byte {tar.offset:,}. Copy it again.")


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does into the key of its sample and its extension.

    The extension, in lower case, starts at the first dot of the last part of the path:
    "a.b/c.seg.png" is "a.b/c" and "seg.png".
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _only_one(
    path: Path, key: str, extension: str, pictures: dict[str, tuple[str, Member]]
) -> None:
    if key in pictures:
        other = pictures[key][0]
        how = (
            "a key names one sample"
            if other == extension
            else f"say which is the image with --picture {other} or --picture {extension}"
        )
        raise DataFault(
            f"{path}: key {name_text(key)!r} has two pictures, .{other} and .{extension}: {how}"
        )


def _answer(
    stream: BinaryIO, info: tarfile.TarInfo, extension: str, label_key: str | None
) -> int | str | None:
    """The class in a .cls or .json member. Raises DataFault."""
    name = name_text(info.name)
    if info.size > LARGEST_LABEL_BYTES:
        raise DataFault(f"{name} has {info.size:,} bytes; that is no label")
    here = stream.tell()  # tarfile reads the next header from here
    stream.seek(info.offset_data)
    data = stream.read(info.size)
    stream.seek(here)
    try:
        text = data.decode("utf-8").strip()
        if extension.endswith("cls"):
            return _class(name, int(text)) if text.isdecimal() else text or None
        record = json.loads(text)
    except RecursionError as error:
        raise DataFault(f"{name} cannot be read: its lists are nested too deeply") from error
    except ValueError as error:  # for a huge number Python adds advice after a semicolon
        raise DataFault(f"{name} cannot be read: {str(error).partition(';')[0]}") from error
    return _answer_in(name, record, label_key)


def _class(name: str, number: int) -> int:
    if 0 <= number <= LARGEST_CLASS:
        return number
    text = str(number)
    text = text if len(text) <= 20 else f"a number of {len(text)} digits"
    raise DataFault(f"{name}: {text} is no class number; needed: 0 to {LARGEST_CLASS}")


def _answer_in(name: str, record: object, label_key: str | None) -> int | str | None:
    if not isinstance(record, dict):
        raise DataFault(f'{name} is no JSON object; needed: such as {{"label": 3}}')
    keys = (label_key,) if label_key else LABEL_KEYS
    value = next((record[key] for key in keys if key in record), None)
    if type(value) is int:
        return _class(name, value)
    if isinstance(value, str):
        return value
    if value is None and label_key is None:
        return None
    raise DataFault(
        f"{name}: no class under {' or '.join(map(repr, keys))} ({value!r:.60}); it holds "
        f"{', '.join(sorted(record)[:12]) or 'nothing'}: say which with --label-key"
    )


def _resolve(
    samples: Sequence[Sample], names: tuple[str, ...] | None
) -> tuple[Sequence[int | None], tuple[str, ...] | None]:
    """The number of each picture's class, and the names of the classes."""
    numbered = {member.id: each for member, each in samples if isinstance(each, int)}
    named = {member.id: each for member, each in samples if isinstance(each, str)}
    without = [member.id for member, answer in samples if answer is None]
    if without and (numbered or named):
        raise LabelFault(
            f"{without[0]}: no .cls and no .json with a class beside it; {len(without):,} of "
            f"{len(samples):,} pictures have none. Either all pictures or none must have a label."
        )
    if numbered and named:
        (number, one), (name, other) = next(iter(numbered.items())), next(iter(named.items()))
        raise LabelFault(
            f"{number} has the class {one} and {name} {other!r}: give all by number or all by name"
        )
    if not named:
        return [answer for _, answer in samples if not isinstance(answer, str)], names
    classes = tuple(sorted({*named.values()})) if names is None else names
    numbers = {name: number for number, name in enumerate(classes)}
    for member, answer in samples:
        if answer not in numbers:
            raise LabelFault(f"{member.id}: class {answer!r} is none of the {len(classes)} named")
    return [numbers[str(answer)] for _, answer in samples], classes


class TarSource(MemberSource):
    """One tar file."""

    name, remote, checks = "tar", True, "file"  # each read opens the file by its name
    suffixes = (".tar",)

    @classmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        if not read_as.labels:
            return list_tars([path], labels=False)
        try:
            return list_tars([path], read_as.class_names)
        except LabelFault as fault:
            raise DataFault(f"{fault}. --input-labels none takes no labels") from fault

    @classmethod
    def _file(cls, path: Path, name: str) -> str:
        return str(path)
