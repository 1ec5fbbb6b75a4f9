"""`classify --recall`: what the networks are asked, what is promised, what is written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from two_networks import CHEAP, CLASSES, EXACT, Networks

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.recall import Recall
from collage_mpi.commands import classify
from collage_mpi.commands.parser import read_command
from collage_mpi.commands.yes_or_no import Question, YesOrNo, finish
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.models.info import Tuning
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.order import read_numbers

pytest.importorskip("pyarrow.parquet")


def job_of(networks: Networks, folder: Path, recall: float = 0.9, *names: str) -> YesOrNo:
    question = Question(names or ("blank",), recall)
    return YesOrNo(len(networks.labels), folder, CHEAP, EXACT, networks.launch, question)


def networks_of(images: int = 3_000, share: float = 0.1, hidden: int = 0) -> Networks:
    """The cheap network is sure of the first images of the exact network's class 1 (blank), in a
    mixed order; `hidden` of them it does not see at all."""
    rng = np.random.default_rng(5)
    blank = rng.permutation(images) < share * images
    sure = np.where(blank, 0.97, rng.uniform(0, 0.004, images))
    sure[np.flatnonzero(blank)[:hidden]] = rng.uniform(0, 0.004, hidden)
    scores = np.stack([1 - sure, sure, np.zeros(images)], axis=1)
    return Networks(scores, np.where(blank, 1, 2 * (rng.random(images) < 0.5)))


def table_of(job: YesOrNo, code: int = ExitCode.COMPLETE) -> list[dict[str, str]]:
    out = job.folder / "table.csv"
    assert finish(job, out, None) == code
    return [*csv.DictReader(out.open())]


def test_the_exact_network_is_asked_for_few_images_once_each_and_the_table_says_who_answered(
    tmp_path, capsys
):
    networks = networks_of()
    job = job_of(networks, tmp_path / "job")
    assert job.execute() == ExitCode.COMPLETE
    assert networks.runs == ["tried", "exact-1", "first", "exact-2", "exact-3"]
    assert {*networks.asked.values()} == {1}
    rows = table_of(job)
    said = capsys.readouterr().out
    assert [row["id"] for row in rows[:1] + rows[-1:]] == ["0.h5:0", "1.h5:99"]
    asked = np.array([row["by"] == "exact" for row in rows])
    found = asked & (networks.labels == 1)
    assert [row["answer"] == "yes" for row in rows] == found.tolist()
    assert 270 <= found.sum() < 300
    assert asked.sum() == len(networks.asked) < 1_000
    for image, row in enumerate(rows):
        wanted = CLASSES[networks.labels[image]] if asked[image] else ""
        assert (row["class"], row["error"]) == (wanted, "")
        assert float(row["score"]) == pytest.approx(networks.scores[image, 1])
    price = ((3_000 + 400) * 1 + asked.sum() * 10) / (10 * 3_000)
    assert f"{found.sum()} pictures are blank: at least 0.9 of those" in said
    assert f"classified {asked.sum():,} of 3,000 pictures; the job took {price:.2f} of" in said


def test_the_price_is_said_before_all_images_are_asked_and_is_that_of_the_job(tmp_path, capsys):
    networks = networks_of()
    networks.stop_at = 3
    assert job_of(networks, tmp_path / "job").execute() == ExitCode.INCOMPLETE
    said = capsys.readouterr().out
    assert "takes some 300, 2,996 or 29,958 answers of the network if 10, 1 or 0.1 % of" in said
    forecast = int(said.split("forecast: some ")[1].split()[0].replace(",", ""))
    price = 0.1 + (forecast + 1.1 * 400) / 3_000
    assert f"takes 0.10 of the time: {price:.2f} of the exact run, with 400 that both" in said
    job = job_of(networks, tmp_path / "job")
    assert job.execute() == ExitCode.COMPLETE
    assert abs(len(networks.asked) - 400 - forecast) < 0.35 * forecast  # 400 were tried


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: setattr(n, "cheap_ms", 9), "It pays for classes of more than 0.1 of"),
        (lambda n: setattr(n, "cheap_ms", 12), "have tried. Leave out --recall"),
        (
            lambda n: n.scores.__setitem__((slice(None), 1), 0.5),
            r"some 2,9\d\d answers of the network",
        ),
    ],
)
def test_what_costs_more_than_the_exact_run_is_refused_before_all_images_are_asked(
    change, said, tmp_path
):
    networks = networks_of(share=0.02)
    change(networks)
    with pytest.raises(UsageError, match=said):
        job_of(networks, tmp_path / "job").execute()
    assert networks.runs == ["tried", "exact-1"]
    drawn = read_numbers(tmp_path / "job" / "exact-1.txt", 3_000).tolist()
    assert drawn == sorted(Draw(3_000, 0).first(400))


def test_a_job_that_is_too_small_or_has_too_few_at_the_top_is_refused(tmp_path):
    networks = networks_of(200, share=0.5)
    with pytest.raises(UsageError, match="takes at least 300 answers of the network, even if"):
        job_of(networks, tmp_path / "small", 0.99).execute()
    assert networks.runs == []
    networks = networks_of()
    networks.labels[networks.labels == 1] = 0
    networks.labels[Draw(3_000, 0).first(400)[:5]] = 1
    with pytest.raises(UsageError, match="Below 9 --recall"):
        job_of(networks, tmp_path / "rare").execute()
    assert networks.runs[-1] == "exact-2"


def test_a_drawn_image_of_the_class_lets_all_above_it_be_asked(tmp_path, capsys):
    networks = networks_of(hidden=30)
    job = job_of(networks, tmp_path / "job")
    assert job.execute() == ExitCode.COMPLETE
    assert networks.runs[-1] == "exact-4"
    assert "are blank, so it classifies" in capsys.readouterr().out
    plan = Recall(networks.scores[:, 1].astype(float), 0.9, 0)
    drawn = np.concatenate(plan.sample(int((networks.labels[plan.top] == 1).sum())))
    before = read_numbers(job.folder / "exact-1.txt", 3_000)
    assert (read_numbers(job.folder / "exact-3.txt", 3_000) == np.setdiff1d(drawn, before)).all()
    assert {*networks.asked.values()} == {1}
    found = sum(row["answer"] == "yes" for row in table_of(job))
    assert 270 <= found <= 300


def test_a_job_that_ended_early_goes_on_where_it_was(tmp_path):
    whole = networks_of(1_000, 0.3, hidden=40)
    job = job_of(whole, tmp_path / "whole")
    job.execute()
    expected = table_of(job)
    ends = {1: ExitCode.USAGE, 3: ExitCode.DATA, 4: ExitCode.INCOMPLETE, 6: 143}
    for stop_at, code in ends.items():
        networks = networks_of(1_000, 0.3, hidden=40)
        networks.stop_at, networks.stop_code = stop_at, code
        job = job_of(networks, tmp_path / f"stopped{stop_at}")
        assert job.execute() == code
        networks.stop_at = 0
        assert job.execute() == ExitCode.COMPLETE
        assert networks.asked == whole.asked
        assert table_of(job) == expected


def test_images_without_an_answer_keep_the_promise(tmp_path):
    """One that the cheap network cannot read is asked; one that only the exact network cannot read
    may be of the class."""
    networks = networks_of()
    unread, unclear = np.flatnonzero(networks.labels == 1)[-2:]
    networks.scores[unread, 0] = np.nan
    networks.labels[unclear] = -1
    job = job_of(networks, tmp_path / "job")
    job.execute()
    rows = table_of(job, ExitCode.COMPLETE_WITH_ERRORS)
    assert (rows[unread]["answer"], rows[unread]["by"], rows[unread]["score"]) == (
        "yes",
        "exact",
        "",
    )
    assert rows[unclear]["answer"] == rows[unclear]["class"] == ""
    assert (rows[unclear]["by"], rows[unclear]["error"]) == ("exact", "cannot be decoded")
    few = len(networks.asked)

    networks = networks_of()
    drawn = read_numbers(tmp_path / "job" / "exact-3.txt", 3_000)  # below the top
    networks.labels[drawn[len(drawn) // 2]] = -1
    job = job_of(networks, tmp_path / "lost")
    job.execute()
    assert networks.runs[-1] == "exact-4"
    assert len(networks.asked) > few


def test_several_classes_are_one_question_and_go_by_their_names(tmp_path):
    networks = networks_of()
    job = job_of(networks, tmp_path / "job", 0.9, "blank", "dog")
    networks.scores[:] = 1 / 3  # the cheap network sees nothing
    with pytest.raises(UsageError, match="of blank or dog is forecast to take some 2,9"):
        job.execute()
    networks = networks_of()
    networks.exact_names = ["blank", "cat", "dog"]
    networks.labels = np.array([1, 0, 2])[networks.labels]  # 0 is blank now
    job = job_of(networks, tmp_path / "other")
    assert job.execute() == ExitCode.COMPLETE
    assert 270 <= sum(row["answer"] == "yes" for row in table_of(job)) <= 300


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("blnk",), "tried has no class 'blnk'; did you mean 'blank'"),
        (("nothing like it",), "no class 'nothing like it'; it has cat, blank, dog"),
        (("cat", "blank", "dog"), "--recall names all classes"),
    ],
)
def test_classes_that_are_unknown_or_all_are_refused(classes, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        job_of(networks_of(), tmp_path / "job", 0.9, *classes).execute()
    networks = networks_of()
    networks.exact_names = ["cat", "white", "dog"]
    with pytest.raises(UsageError, match="exact-1 has no class 'blank'"):
        job_of(networks, tmp_path / "other").execute()
    assert networks.runs == ["tried", "exact-1"]


def test_classes_without_names_go_by_their_numbers(tmp_path):
    networks = networks_of()
    networks.names = networks.exact_names = None
    job = job_of(networks, tmp_path / "job", 0.9, "1")
    assert job.execute() == ExitCode.COMPLETE
    assert {row["class"] for row in table_of(job)} == {"", "0", "1", "2"}
    with pytest.raises(UsageError, match="no class '3'; it has 0, 1, 2"):
        job_of(networks, tmp_path / "job", 0.9, "3").execute()


def test_an_input_that_changes_between_the_runs_is_noticed(tmp_path):
    networks = networks_of()
    networks.stop_at = 4
    job = job_of(networks, tmp_path / "job")
    job.execute()
    networks.counts = [*reversed(networks.counts)]
    with pytest.raises(DataFault, match="exact-2: has other inputs than"):
        job.execute()
    networks = networks_of()
    with pytest.raises(DataFault, match="its input has not the 2,999 images that are there now"):
        YesOrNo(2_999, tmp_path / "n", CHEAP, EXACT, networks.launch, job.question).execute()


# ---- the option -------------------------------------------------------------

PHOTOS = ("classify", "photos", "--out", "c.csv", "--device", "cpu")


@pytest.fixture
def begun(tmp_path, monkeypatch) -> list[RunSettings]:
    """The settings of the runs that would be launched; each ends early but the first two."""
    found: list[RunSettings] = []

    def launch(how) -> int:
        found.append(how.settings)
        return ExitCode.INCOMPLETE

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    monkeypatch.setattr(classify, "check_and_launch", launch)
    monkeypatch.setattr(classify, "ranks_here", lambda *_: 2)
    many = type("Info", (), {"count": 10_000})
    monkeypatch.setattr(classify, "_infos", lambda _: {0: many})
    return found


def begin(*words: str) -> int:
    return begin_with("timm:a", *words)


def begin_with(network: str, *words: str) -> int:
    command, args = read_command((*PHOTOS, "--network", network, *words))
    return command.execute(args)


def test_by_default_bfloat16_is_asked_first_and_keeps_its_scores(begun, capsys):
    assert begin("--recall", "blank=0.95", "--image-px", "96") == ExitCode.INCOMPLETE
    (first,) = begun
    assert (first.single, first.tuning()) == (
        "timm:a",
        Tuning(precision="bfloat16", runtime="auto"),
    )
    assert (first.save, first.scheme, first.singles, first.image_px) == ("scores", "none", 2, 96)
    assert (first.out, first.only) == ("c.csv.run/tried", "c.csv.run/exact-1.txt")
    assert "repeat the command to continue" in capsys.readouterr().out


def test_what_first_says_is_the_cheap_network(begun):
    begin("--recall", "a", "b=0.95", "--first", "timm:b@160px@openvino")
    (first,) = begun
    assert (first.single, first.image_px, first.runtime) == ("timm:b", 160, "openvino")
    begun.clear()
    begin("--recall", "a=0.9", "--first", "collage:w.safetensors")
    assert (begun[0].scheme, begun[0].collage, begun[0].collage_ranks, begun[0].single) == (
        "collage-only", "w.safetensors", 2, "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recall", "blank"), "needed are a class, or several different"),
        (("--recall", "blank=1"), "needed are a class"),
        (("--recall", "blank=x"), "needed are a class"),
        (("--recall", "=0.9"), "needed are a class"),
        (("--recall", "a", "a=0.9"), "needed are a class"),
        (("--recall", "a=0.9", "--agree", "0.9"), "leave out --agree and --top-k"),
        (("--recall", "a=0.9", "--top-k", "2"), "leave out --agree and --top-k"),
        (("--recall", "a=0.9", "--first", "w", "v"), "one network in --first, without a threshold"),
        (("--recall", "a=0.9", "--first", "@int8"), "choose @bfloat16 in place of @int8"),
        (("--recall", "a=0.9", "--first", "w@0.9"), "one network in --first, without a threshold"),
        (("--recall", "a=0.9", "--first", "w@top"), "one network in --first, without a threshold"),
        (("--recall", "a=0.9", "--first", "timm:a"), "which is the network itself"),
        (("--recall", "a=0.9", "--precision", "bfloat16"), "name a cheaper one with --first"),
    ],
)
def test_what_cannot_be_promised_is_refused(words, said, begun):
    with pytest.raises(UsageError, match=said):
        begin(*words)
    assert begun == []


def test_a_folder_with_a_run_of_another_kind_is_refused(begun):
    Path("c.csv.run").mkdir()
    Path("c.csv.run/run.1.json").touch()
    with pytest.raises(UsageError, match="has a run without --recall"):
        begin("--recall", "a=0.9")


def test_only_the_exact_networks_error_rows_are_tried_again(begun, monkeypatch):
    asked = []
    monkeypatch.setattr(
        classify, "check_and_launch", lambda how: asked.append(how.run.retry_errors) or 0
    )
    monkeypatch.setattr(YesOrNo, "_try", lambda self: self.run(self.exact, Path("exact")))
    monkeypatch.setattr("collage_mpi.commands.yes_or_no.Found", lambda *_: _NothingLeft())
    monkeypatch.setattr("collage_mpi.commands.yes_or_no.finish", lambda *_: 0)
    assert begin("--recall", "a=0.9", "--retry-errors") == 0
    assert asked == [True, False]


class _NothingLeft:
    def next(self) -> np.ndarray:
        return np.empty(0, np.int64)


def test_a_class_that_a_weights_file_does_not_have_is_told_before_ranks(begun):
    shipped = "shipped:fashion_single.safetensors"
    with pytest.raises(UsageError, match=r"fashion_single.safetensors has no class 'Sandle'; did"):
        begin_with(shipped, "--recall", "Sandle=0.9")
    assert begun == []
    begin_with(shipped, "--recall", "Sandal=0.9")
    begin_with(shipped, "--recall", "sole=0.9", "--class-names-file", "names.txt")
    assert len(begun) == 2
