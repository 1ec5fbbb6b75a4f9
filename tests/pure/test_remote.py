"""Sources by URL: the same pictures from a server on this host, and from memory, as from files."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pictures import make_source, write_folder

from collage_mpi.commands.launch import LaunchArguments, check_before_ranks
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.job.row_reader import RowReader, described
from collage_mpi.results.export import from_shards
from collage_mpi.shards import ShardSet, remote
from collage_mpi.shards.inputs import expand_paths, source_of
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.remote import path_of, stat_of, url_of
from collage_mpi.shards.schema import ShardInfo, split_part
from collage_mpi.shards.source import ReadAs

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

COUNT = 12
READ_AS = ReadAs(PictureFit(16))


class Files(BaseHTTPRequestHandler):
    """Serves files below `folder`, with ranges of bytes unless `ranges` is off."""

    folder: Path
    ranges, failures = True, 0

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if self.failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), self.headers.get("Range", "") if self.ranges else ""
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first or 0) : int(last or len(data)) + 1]
        self.send_response(206 if asked else 200)
        if asked:
            end = int(first or 0) + len(part) - 1
            self.send_header("Content-Range", f"bytes {int(first or 0)}-{end}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path):
    """(the class of the handler, the server's URL); it serves `tmp_path`."""
    handler = type("Here", (Files,), {"folder": tmp_path})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def in_memory(folder: Path) -> str:
    """The URL of a copy of the folder in memory."""
    system = fsspec.filesystem("memory")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        system.pipe(f"/{folder.name}/{file.relative_to(folder)}", file.read_bytes())
    return f"memory://{folder.name}"


def everything(path: object) -> tuple[np.ndarray, object]:
    with ShardSet.open([str(path)], read_as=READ_AS) as found:
        pixels, labels = found.read_all()
    return pixels, None if labels is None else labels.tolist()


@pytest.mark.parametrize("kind", ["tar", "parquet", "hugging", "zarr3", "list"])
@pytest.mark.parametrize("where", ["http", "memory"])
def test_what_a_url_gives_is_what_the_file_gives(kind, where, tmp_path, served) -> None:
    if "zarr" in kind:
        pytest.importorskip("zarr", reason="zarr is not installed")
    files = write_folder(tmp_path / "photos", COUNT)
    path = make_source(kind, tmp_path / "data", files)
    if kind == "list":
        path = tmp_path / "list.txt"
        path.write_text("".join(f"{file.relative_to(tmp_path)}\n" for file in files))
    whole = everything(path)
    top = served[1] if where == "http" else in_memory(tmp_path)
    url = f"{top}/{path.relative_to(tmp_path)}"
    url += "::images" if "zarr" in kind else ""  # a server lists no folders
    found = everything(url)
    np.testing.assert_array_equal(found[0], whole[0])
    assert found[1] == (None if "zarr" in kind else whole[1])


def test_workers_read_urls_and_ask_a_server_again(tmp_path, served, monkeypatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0, 0, 0))
    handler, url = served
    path = make_source("tar", tmp_path / "data", write_folder(tmp_path / "photos", COUNT))
    with ShardSet.open([f"{url}/data/{path.name}"], read_as=READ_AS) as shards:
        record = shards.infos[0].to_json()
        assert record["path"] == str(ShardInfo.from_json(record).path) == f"{url}/data/{path.name}"
        expected = shards.read_all()[0]
        shards.save_indexes(tmp_path / "index")
        reader = RowReader(described(shards))
        handler.failures = 3
        pixels, faults = reader.read([(0, 3)])
        assert faults == [None]
        np.testing.assert_array_equal(pixels, expected[3:4])
        handler.failures = 1000
        _, (why,) = reader.read([(0, 4)])
        assert why is not None
        assert "a.tar: cannot be read" in why.reason
        assert not why.of_input  # another rank may read it
        reader.close()


def test_a_list_may_name_urls_of_which_some_are_gone(tmp_path, served) -> None:
    files = write_folder(tmp_path / "photos", 3)
    names = [f"{served[1]}/{file.relative_to(tmp_path)}" for file in files]
    (tmp_path / "a.txt").write_text("\n".join([*names, f"{served[1]}/gone.jpg"]))
    with ShardSet.open([tmp_path / "a.txt"], read_as=READ_AS) as found:
        _, _, good = found.read_checked(range(4))
        assert good.tolist() == [True, True, True, False]
        assert "has no such file" in found.row_fault(3)


def test_a_server_without_ranges_is_told(tmp_path, served) -> None:
    path = make_source("tar", tmp_path / "data", write_folder(tmp_path / "photos", COUNT))
    url = f"{served[1]}/data/{path.name}"
    with ShardSet.open([url], read_as=READ_AS) as found:
        served[0].ranges = False
        assert not found.read_checked([3])[2].any()
        assert "does not serve ranges of bytes" in found.row_fault(3)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_server_that_never_had_ranges_is_told_and_lists_are_read(kind, tmp_path, served) -> None:
    files = write_folder(tmp_path / "photos", 3)
    path = make_source(kind, tmp_path / "data", files)
    (tmp_path / "a.txt").write_text("\n".join(map(str, files)))
    served[0].ranges = False
    with pytest.raises(EnvironmentFault, match=r"does not serve ranges of bytes: copy it"):
        ShardSet.open([f"{served[1]}/data/{path.name}"], read_as=READ_AS)
    with ShardSet.open([f"{served[1]}/a.txt"], read_as=READ_AS) as found:
        assert found.read_checked(range(3))[2].all()


@pytest.mark.parametrize("name", ["a.h5", "photos/", "folder:http://127.0.0.1:1/photos"])
def test_what_cannot_be_read_by_url_says_what_to_do(name) -> None:
    url = name if ":" in name else f"s3://bucket/{name}"
    with pytest.raises(
        EnvironmentFault, match=r"://.*: .* cannot be read by URL: copy it to a file"
    ):
        ShardSet.open([url])


def test_a_server_that_is_not_there_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0,))
    with pytest.raises(
        (EnvironmentFault, DataFault), match=r"http://127\.0\.0\.1:1/a\.tar: cannot"
    ):
        ShardSet.open(["http://127.0.0.1:1/a.tar"])


@pytest.mark.parametrize("source", [None, "tar"])
def test_names_say_why_a_url_gives_none(source, monkeypatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0,))
    entry = {"path": "http://127.0.0.1:1/a.tar", "fingerprint": "0", "source": source}
    _, (why,) = from_shards({0: entry}, None, lambda _, info: info)
    assert why.startswith("http://127.0.0.1:1/a.tar: cannot be read")


def test_before_a_server_is_asked_again_there_is_a_pause(monkeypatch) -> None:
    done: list[float | str] = []

    def ask(system, place):
        done.append(place)
        raise RuntimeError("too busy")

    monkeypatch.setattr(remote.time, "sleep", done.append)
    with pytest.raises(EnvironmentFault, match="too busy"):
        remote._asked("http://host/a.tar", ask)
    url = "http://host/a.tar"
    assert done == [url, 0.5, url, 2.0, url, 8.0, url]


def test_a_url_keeps_its_slashes_in_messages() -> None:
    with pytest.raises(EnvironmentFault, match=r"^http://host/a\.tar: given twice"):
        expand_paths([Path("http://host/a.tar")] * 2)
    of, path = source_of("zarr:http://host/a.zarr::images")
    assert (of.name, str(path)) == ("zarr", "http://host/a.zarr::images")
    assert str(split_part(path)[0]) == "http://host/a.zarr"
    assert str(path_of("a//b.tar")) == "a/b.tar"


def test_which_paths_are_urls() -> None:
    assert url_of(Path("http://host/a//b.tar")) == "http://host/a/b.tar"
    assert url_of("s3://bucket/key") == "s3://bucket/key"
    assert [url_of(p) for p in ("tar:/data/a", "/data/http:/x", "http:x", "C:/a")] == [None] * 4
    assert source_of("tar:http://host/data")[0].name == "tar"
    assert source_of("http://host/a.h5")[0].name == "images"


def test_a_stamp_follows_what_a_server_says(tmp_path, served) -> None:
    (tmp_path / "a").write_bytes(b"one")
    before = stat_of(f"{served[1]}/a")
    assert before[0] == 3
    assert stat_of(f"{served[1]}/a") == before
    os.utime(tmp_path / "a", ns=(1, 1))
    fsspec.filesystem("http").dircache.clear()
    assert stat_of(f"{served[1]}/a") != before


def test_launch_leaves_a_url_to_rank_0(tmp_path: Path) -> None:
    words = ["run", "--scheme", "none", "--singles", "2", "--single", "null", "--image-px", "8"]
    words += ["--device", "cpu", "--out", str(tmp_path / "out"), "--input"]

    def asked(path: str) -> LaunchArguments:
        return LaunchArguments(ranks=3, words=(*words, path))

    assert check_before_ranks(asked("memory://there/a.tar")) == 3
    with pytest.raises(EnvironmentFault, match=r"gone\.tar: cannot be read: No such file"):
        check_before_ranks(asked(str(tmp_path / "gone.tar")))
