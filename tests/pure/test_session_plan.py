"""What rank 0 checks before anything is sent, and what of the input a run has left."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from job_messages import HELLO
from msgspec import structs
from pictures import write_folder
from results_harness import input_digest

from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.job import plan as plan_module
from collage_mpi.job import run as run_module
from collage_mpi.job.handshake import (
    answer_bytes,
    check_same_weights,
    counted_classes,
    most_together,
    task_bytes,
    welcomes,
)
from collage_mpi.job.messages import Hello
from collage_mpi.job.plan import make_plan, warn_of_one_class_groups, warn_of_small_pictures
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.run import Ask, before_this, run_session, warn_of_bad_shards
from collage_mpi.job.session import build_encoder, open_reader
from collage_mpi.ledger.records import Run
from collage_mpi.ledger.store import FolderStore
from collage_mpi.models.asking import Described
from collage_mpi.models.info import Declared, Geometry, own_info
from collage_mpi.mpi.tasks import cancel_message_bytes
from collage_mpi.results.writer import differences
from collage_mpi.settings.batches import MostGroups
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> tuple[str, str]:
    """Two shards, of 5 and of 7 images of 6 px."""
    folder = tmp_path_factory.mktemp("plan")
    for name, count in (("a", 5), ("b", 7)):
        images = np.full((count, 6, 6, 1), count, np.uint8)
        write_shard(folder / f"{name}.h5", images, np.arange(count) % 3)
    return str(folder / "a.h5"), str(folder / "b.h5")


def plan_of(shards, world: int = 6, known=None, **more):
    values = {"single": "null", "collage": "null", "out": "out", "side": 2, **more}
    return make_plan(RunSettings(shards=shards, **values), world, known)


def images_of(plan) -> list[int]:
    return plan.order.indices(range(len(plan.order))).tolist()


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"world": 5}, EnvironmentFault, "launch with -n 6"),
        ({"slow_ranks": ("6:2",), "straggler": "pinned"}, UsageError, "slow rank 6"),
        ({"cell_px": 40_000}, UsageError, "smaller --cell-px"),
        ({"single": "gone.safetensors"}, EnvironmentFault, "gone.safetensors"),
        ({"collage": "null:side=3,oops=1"}, UsageError, "oops"),
    ],
)
def test_what_does_not_fit_is_refused(shards, more, error, says):
    with pytest.raises(error, match=says):
        plan_of(shards, **more)


@pytest.mark.parametrize("partial", ["", "limit", "only"])
def test_a_partial_run_stays_without_a_shard_that_was_mended_later(
    shards, tmp_path, caplog, partial
):
    (tmp_path / "some.txt").write_text("0 1 2 3 4")
    given = {"": {}, "limit": {"limit": 6}, "only": {"only": str(tmp_path / "some.txt")}}[partial]
    at_first = plan_of(shards[:1], **given)
    plan = plan_of(shards, **given, known={"sessions": [], **fixed_facts(at_first)})
    images = 5 if partial else 12
    assert (len(plan.order), len(plan.shards)) == (5, images)  # a later run has the others
    assert differences(fixed_facts(at_first), fixed_facts(plan, 1)) == []
    warn_of_bad_shards(plan.shards)
    told = f"warning: {shards[1]}: left out, because the run has --limit or --only"
    assert (told in caplog.text) == bool(partial)


@pytest.mark.parametrize(
    ("more", "by_image", "label"),
    [
        ({}, False, "collage"),
        ({"assign": "pull"}, True, "collage, pulled"),
        ({"endgame": "on"}, True, "collage, end game"),
    ],
)
def test_where_a_rank_may_run_several_images_of_a_group_draws_are_by_image(more, by_image, label):
    """In a simulation."""
    settings = RunSettings(**{"assign": "turn", "endgame": "off", **more})
    assert settings.draws_by_image == by_image
    assert settings.labels()["scheme"] == label


def test_a_session_says_if_the_one_before_it_had_another_batch():
    assert before_this({}, 8) == before_this({"batch": 8}, 8) == ""
    assert before_this({"batch": 4}, 8) == "; the job before had batch 4"


def test_the_largest_batch_depends_on_what_rank_0_sends(shards):
    plan = plan_of(shards, scheme="collage", batch=None)
    encoder, singles = build_encoder(plan), plan.placement.ranks_of("single")
    who = plan.placement.workers, singles, singles[1:]
    for edge, sizes in (
        (512, (1024, 1024, 10)),
        (1024, (341, 341, 2)),  # 342 of them are more than 1 GiB
    ):
        large = replace(plan, shards=SimpleNamespace(shape=(edge, edge, 3), dtype="uint8"))
        for reading, size in zip(who, sizes, strict=True):
            assert most_together(large, encoder, 10**9, reading, ()).size == size
    found = most_together(large, encoder, 10**9, singles, ())
    assert found.why == "a message has room for 1 GiB"
    items = replace(
        plan_of(shards, scheme="none", batch=None),
        shards=SimpleNamespace(shape=(128, 64, 64), dtype="float32"),
    )
    assert most_together(items, encoder, 10**9, (), ()).size == 4  # of 2 MiB each
    assert task_bytes(items.at_batch(3), encoder) > 3 * (2 << 20)


@pytest.mark.parametrize(
    ("scheme", "kept_bytes", "size"),
    [("none", 1 << 20, 64), ("cascade", 1 << 20, 16), ("none", 60 << 20, 1)],
)
def test_a_batch_is_chosen_whose_kept_values_fit_a_message(shards, scheme, kept_bytes, size):
    """Values of varying length are as long as the longest of their batch."""
    more = {"first": ("null",)} if scheme == "cascade" else {}
    plan = plan_of(shards, scheme=scheme, side=2, batch=None, pixels="workers", **more)
    reading, encoder = plan.placement.workers, build_encoder(plan)
    column = KeptColumn("boxes", "<f4", (None, 4), kept_bytes - 4)
    found = most_together(plan, encoder, 10**9, reading, [column])
    why = "a message of answers has room for 64 MiB of kept values"
    assert found == MostGroups(size, why)
    room = answer_bytes(plan.at_batch(size), encoder, [column])
    assert room < (64 << 20) + (1 << 20)


def test_a_cancel_of_all_that_a_rank_may_hold_fits_a_message_of_places(shards):
    plan = plan_of(shards, pixels="workers", batch=3)
    assert task_bytes(plan, build_encoder(plan)) >= cancel_message_bytes(2 * 3)


@pytest.mark.parametrize(
    "more",
    [
        {"reply_timeout_s": float("inf")},
        {"reply_timeout_s": 1e300},
        {"deadline_ms": float("nan")},
        {"deadline_ms": float("inf")},
        {"depth": 10**30},
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(more):
    with pytest.raises(UsageError):
        RunSettings(**more)


def test_a_label_that_no_row_can_hold_is_refused(tmp_path):
    labels = np.array([0, 2**40])
    write_shard(tmp_path / "big.h5", np.zeros((2, 6, 6, 1), np.uint8), labels)
    with pytest.raises(DataFault, match="1099511627776"):
        plan_of((str(tmp_path / "big.h5"),))


def test_the_order_is_a_seeded_permutation_cut_at_the_limit(shards):
    whole = images_of(plan_of(shards, order="shuffle:3"))
    assert sorted(whole) == list(range(12))
    assert whole != list(range(12))
    assert images_of(plan_of(shards, order="shuffle:3", limit=4)) == whole[:4]
    assert images_of(plan_of(shards, limit=100)) == list(range(12))


def test_a_run_keeps_the_permutation_that_its_manifest_names(shards):
    """A run of an earlier version names none: its images were shuffled by NumPy."""
    known = {"sessions": [], **fixed_facts(plan_of(shards, order="shuffle:3"))}
    again = plan_of(shards, order="shuffle:3", known=known)
    assert known["permutation"] == fixed_facts(again)["permutation"] == 1
    del known["permutation"]
    older = plan_of(shards, order="shuffle:3", known=known, limit=7)
    by_numpy = np.arange(12)
    np.random.default_rng(3).shuffle(by_numpy)
    assert images_of(older) == by_numpy[:7].tolist() != images_of(again)[:7]
    assert "permutation" not in fixed_facts(older)
    assert "permutation" not in fixed_facts(plan_of(shards))
    with pytest.raises(EnvironmentFault, match=r"shuffled by permutation 2; .* knows 1"):
        plan_of(shards, order="shuffle:3", known={**known, "permutation": 2})


@pytest.mark.parametrize("order", ["file", "shuffle:1"])
def test_a_later_run_asks_for_images_again_and_then_for_those_of_new_shards(shards, order):
    plan = plan_of(shards, order=order)
    first = images_of(plan)
    found = [
        Run(1, 0, 12, 12, settings={"images": 12}),
        Run(2, 12, 17, 5, again=((3, 5), (7, 8)), settings={"images_now": 14}),
        Run(3, 17, 19, 2, again=((13, 14), (15, 16)), settings={"images_now": 14}),
    ]
    second, third = plan.at_run(found[:2]), plan.at_run(found)
    assert images_of(second) == [first[3], first[4], first[7], 12, 13]
    assert images_of(third) == [first[4], 12]
    assert [plan.at_run(found[:1]).first, second.first, third.first] == [0, 12, 17]


def test_the_manifest_expects_the_rows_of_the_plan(shards):
    plan = plan_of(shards, order="shuffle:1", limit=8)
    manifest = fixed_facts(plan)
    located = np.array([plan.shards.locate(int(i)) for i in images_of(plan)])  # (8, 2)
    assert manifest["input_digest"] == input_digest(located[:, 0], located[:, 1])
    assert manifest["rows"] == 8
    assert [shard["count"] for shard in manifest["shards"]] == [5, 7]
    assert manifest["mode"] == "carry, depth auto"


def test_times_reach_the_core_in_ns():
    settings = RunSettings(deadline_ms=1.5, confidence=0.5, between="drain", side=3)
    found = settings.core_settings(10, 1.0, {})
    assert settings.accept_policy().deadline_ns == 1_500_000
    assert found.drain
    assert found.group_size == 9


def test_one_class_groups_are_said(tmp_path, caplog):
    write_shard(tmp_path / "s.h5", np.zeros((40, 6, 6, 1), np.uint8), np.repeat(np.arange(10), 4))
    warn_of_one_class_groups(plan_of((str(tmp_path / "s.h5"),)))
    assert "--order shuffle:0" in caplog.messages[-1]
    caplog.clear()
    warn_of_one_class_groups(plan_of((str(tmp_path / "s.h5"),), order="shuffle:0"))
    warn_of_one_class_groups(plan_of((str(tmp_path / "s.h5"),), scheme="none"))
    warn_of_one_class_groups(plan_of((str(tmp_path / "s.h5"),), limit=4))  # all of one class
    assert caplog.messages == []


QUICK = {"scheme": "cascade", "first": ("null",)}


def hello(host: str, **fingerprints: str) -> Hello:
    return replace(HELLO, host=host, fingerprints=fingerprints)


def test_ranks_that_run_a_network_must_hold_the_same_weights():
    specs = {"single": "w", "stage1": "w", "collage": "c"}
    same = {1: hello("n0", single="aa"), 2: hello("n1", single="aa"), 3: hello("n1", collage="bb")}
    check_same_weights(same, specs)
    with pytest.raises(CollageError, match=r"rank 4 on n2 .* than rank 1 on n0"):
        check_same_weights({**same, 4: hello("n2", single="cc")}, specs)
    with pytest.raises(CollageError, match=r"rank 4 on n2 .* than rank 1 on n0"):
        check_same_weights({**same, 4: hello("n2", stage1="cc")}, specs)
    check_same_weights({**same, 4: hello("n2", stage1="cc")}, {**specs, "stage1": "small"})
    with pytest.raises(CollageError, match="the same file on every host"):
        check_same_weights({**same, 4: hello("n2", single="cc")}, specs)
    mine = {**specs, "single": "net:make", "stage1": "net:make"}
    with pytest.raises(CollageError, match=r"net:make makes other .* seed its random numbers"):
        check_same_weights({**same, 4: hello("n2", single="cc")}, mine)


def test_a_batch_of_a_stage_that_no_message_holds_is_refused(shards, monkeypatch):
    monkeypatch.setattr(plan_module, "LARGEST_INPUT_BYTES", 200)
    with pytest.raises(UsageError, match=r"a message of 9 images takes .* choose a smaller --side"):
        plan_of(shards, 11, **QUICK, side=3, cell_px=2)
    plan_of(shards, **QUICK, side=2, cell_px=2).shards.close()


def test_what_a_message_and_a_row_just_hold_is_taken(shards, monkeypatch):
    images = 9 * 36  # bytes
    monkeypatch.setattr(plan_module, "LARGEST_INPUT_BYTES", images)
    plan_of(shards, 11, **QUICK, side=3, cell_px=2).shards.close()
    monkeypatch.setattr(plan_module, "LARGEST_INPUT_BYTES", images - 1)
    with pytest.raises(UsageError, match=r"a message of 9 images takes 324 bytes"):
        plan_of(shards, 11, **QUICK, side=3, cell_px=2)


def test_a_task_has_no_more_images_than_its_row_can_count(shards):
    asked = {**QUICK, "side": 16, "pixels": "workers"}
    plan_of(shards, 258, batch=255, **asked).shards.close()
    with pytest.raises(UsageError, match=r"65,536 images in one .* --batch 255 or less"):
        plan_of(shards, 258, batch=256, **asked)
    plan = plan_of(shards, 258, batch=None, **asked)
    plan.shards.close()
    found = most_together(plan, build_encoder(plan), 10**9, plan.placement.workers, ())
    assert found == MostGroups(255, "a task has at most 65,535 images")


@pytest.mark.parametrize("more", [0, 1])
def test_a_label_has_the_31_bits_of_a_row(shards, more):
    with plan_of(shards).shards as found:
        found.highest_label = lambda: 2**31 - 1 + more
        check = partial(plan_module._check_sizes, found, Grid(2, 6), RunSettings(side=2))
        refused = pytest.raises(DataFault, match=r"have label 2147483648; .* from 0 to 2147483647$")
        with refused if more else nullcontext():
            check()


def test_without_a_collage_a_cell_is_as_large_as_an_image(shards):
    plan = plan_of(shards, scheme="none")
    plan.shards.close()
    assert plan.grid == Grid(2, 6)


def test_ranks_are_told_how_many_they_are_in_all_teams(shards):
    plan = plan_of(shards, 12, teams=2)
    told = welcomes(plan, build_encoder(plan))
    plan.shards.close()
    assert {welcome.ranks for welcome in told.values()} == {12}


@pytest.mark.parametrize(
    ("scheme", "files"), [("none", True), ("cascade", False), ("collage", False)]
)
def test_pictures_go_as_files_where_a_task_has_one_image(scheme, files, tmp_path):
    write_folder(tmp_path / "photos")
    more = QUICK if scheme == "cascade" else {"scheme": scheme}
    plan = plan_of((str(tmp_path / "photos"),), **more)
    with open_reader(plan, build_encoder(plan), ()) as reader:
        assert reader.files == files


def test_a_plan_that_fails_leaves_no_file_open(shards):
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        with pytest.raises(UsageError):
            plan_of(shards, cell_px=40_000)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_what_breaks_before_the_run_has_begun_leaves_no_folder(shards, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("collage_mpi.job.run.StatusFiles", broken)
    transport = SimpleNamespace(size=6, library="none")
    world = SimpleNamespace(transport=transport, ranks=range(1, 6), others=None)
    out = tmp_path / "out"
    settings = RunSettings(shards=shards, single="null", collage="null", out=str(out), side=2)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="new thread"):
        run_session(settings, world, Ask())
    assert not out.exists()
    assert threading.active_count() == before


def test_a_run_whose_name_is_seen_late_is_known_to_the_plan(shards, tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "images-0001-000001.parquet").touch()

    def made(settings, size, known, team, update, growing):
        raise KeyError(known)

    monkeypatch.setattr("time.sleep", lambda _: (tmp_path / "run.1.json").touch())
    monkeypatch.setattr(run_module, "compose", lambda out: "the run of " + out.name)
    monkeypatch.setattr(run_module, "make_plan", made)
    monkeypatch.setattr(run_module, "read_runs", lambda out: ())
    world = SimpleNamespace(transport=SimpleNamespace(size=6), ranks=range(1, 6))
    settings = RunSettings(shards=shards, single="null", collage="null", out=str(tmp_path), side=2)
    with pytest.raises(KeyError, match=f"the run of {tmp_path.name}"):
        run_session(settings, world, Ask())


@pytest.mark.parametrize(
    "other",
    [{"again": ((2, 3),)}, {"stop": 17}, {"settings": {"images_now": 20, "shards": [1, 3]}}],
)
def test_a_later_run_that_another_job_began_has_the_images_that_this_job_found(tmp_path, other):
    store = FolderStore(tmp_path)
    plan = SimpleNamespace(
        settings=SimpleNamespace(open_loop=False, assign="pull", teams=1), order=range(8)
    )
    mine = Run(2, 8, 16, 1, settings={"images_now": 20, "shards": (1, 2)})
    jobs = [SimpleNamespace(plan=plan, store=store, owner=name * 32, out=tmp_path) for name in "ab"]
    begun = run_module.JobRun._joined(jobs[0], mine, 1, 1.0)
    assert run_module.JobRun._joined(jobs[1], mine, 1, 1.0) == begun
    with pytest.raises(EnvironmentFault, match=r"run\.2\.json: another job .* Repeat"):
        run_module.JobRun._joined(jobs[1], structs.replace(mine, **other), 1, 1.0)


@pytest.mark.parametrize(("stopped", "status"), [(None, "complete"), ("SIGTERM", "incomplete")])
def test_a_complete_run_is_waited_for_that_is_seen_late(monkeypatch, stopped, status):
    first, second = Run(1, 0, 8, 8), Run(2, 8, 16, 8)
    listed = iter([[first], [first, second], [first, second]])
    statuses, slept = iter(["incomplete", "complete"]), list[float]()
    monkeypatch.setattr(run_module, "read_runs", lambda _: next(listed))
    monkeypatch.setattr(run_module, "compose", lambda _: {"status": next(statuses)})
    monkeypatch.setattr("time.sleep", slept.append)
    job = SimpleNamespace(out=Path("out"), run=second, _why_stop=lambda: stopped)
    assert run_module.JobRun._seen_status(job) == status
    assert len(slept) == (0 if stopped else 2)


def test_a_run_that_grows_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(run_module, "read_runs", lambda _: [Run(1, 0, 8, 8)])
    monkeypatch.setattr(run_module, "compose", lambda _: {"status": "incomplete", "listing": "due"})
    job = SimpleNamespace(out=Path("out"), run=Run(1, 0, 8, 8), _why_stop=lambda: None)
    assert run_module.JobRun._seen_status(job) == "incomplete"  # else it sleeps a minute


@pytest.fixture
def unlabelled(tmp_path) -> tuple[str, ...]:
    write_shard(tmp_path / "u.h5", np.zeros((6, 6, 6, 1), np.uint8))
    return (str(tmp_path / "u.h5"),)


OWN = {"single": "my_nets:network", "collage": "my_nets:network", "cell_px": 6}


def test_of_pictures_without_labels_a_network_of_ones_own_tells_the_classes(
    unlabelled, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text("def network(**told): return None")
    plan = plan_of(unlabelled, **OWN)
    assert plan.classes is None
    assert {w.geometry.classes for w in welcomes(plan, build_encoder(plan)).values()} == {None}
    assert fixed_facts(plan)["class_names"] is None
    with pytest.raises(UsageError, match=r"--save scores.*--class-names-file FILE"):
        plan_of(unlabelled, **OWN, save="scores")
    names = tmp_path / "names.txt"
    names.write_text("crane\nowl\ncrane\n")
    plan = plan_of(unlabelled, **OWN, save="scores", class_names_file=str(names))
    assert (plan.classes, plan.class_names) == (3, ("crane (0)", "owl", "crane (2)"))
    assert "class_names_file" in fixed_facts(plan)["inputs"]


def told(classes: int, names: tuple[str, ...] = (), shape=(6, 6, 1)) -> Described:
    """What a network of another library says of itself."""
    geometry = Geometry(shape, 2, 6, None)
    info = own_info("timm:net", "single", geometry, "f", Declared(names or None))
    return Described(replace(info, class_names=names), classes, None)


def test_a_named_network_tells_the_classes_before_the_session(unlabelled, tmp_path, monkeypatch):
    named = (str(tmp_path / "named.h5"),)
    write_shard(named[0], np.zeros((2, 6, 6, 1), np.uint8), np.arange(2), class_names=["a", "b"])
    asked = []
    answers = {"timm:net": told(5), "n.onnx": told(3, ("x", "y", "z"))}

    def ask(spec, kind, geometry, trusted):
        asked.append((spec, kind, geometry.image_shape, geometry.classes))
        return answers[spec]

    monkeypatch.setattr("collage_mpi.job.plan.ask", ask)
    monkeypatch.setattr("collage_mpi.job.plan.describe", lambda *_: None)
    alone = {"scheme": "none", "single": "timm:net", "world": 3, "singles": 2}
    plan = plan_of(unlabelled, **alone, save="scores")
    assert (plan.classes, plan.class_names) == (5, None)
    assert asked == [("timm:net", "single", (6, 6, 1), None)]
    plan = plan_of(unlabelled, **{**alone, "single": "n.onnx"})
    assert (plan.classes, plan.class_names) == (3, ("x", "y", "z"))
    with pytest.raises(DataFault, match="2 classes in the shards, 3 in single network timm:net"):
        plan_of(named, **{**alone, "single": "n.onnx"})
    with pytest.raises(DataFault, match="2 classes in the class names, 5 in single network timm"):
        plan_of(named, **alone)
    answers["timm:net"] = told(5, shape=(8, 8, 3))
    with pytest.raises(DataFault, match=r"hold images of \(6, 6, 1\).*timm:net needs \(8, 8, 3\)"):
        plan_of(unlabelled, **alone)


def test_the_labels_are_classes_of_a_named_network(tmp_path, monkeypatch):
    write_shard(tmp_path / "l.h5", np.zeros((2, 6, 6, 1), np.uint8), np.array([0, 4]))
    monkeypatch.setattr("collage_mpi.job.plan.describe", lambda *_: None)
    alone = {"scheme": "none", "single": "timm:net", "world": 3, "singles": 2}
    for classes in (5, 4):
        monkeypatch.setattr("collage_mpi.job.plan.ask", lambda *_, n=classes: told(n))
        if classes == 5:
            assert plan_of((str(tmp_path / "l.h5"),), **alone).classes == 5
            continue
        with pytest.raises(DataFault, match=r"4 classes in single .*, but the shards have label 4"):
            plan_of((str(tmp_path / "l.h5"),), **alone)


def test_a_users_function_is_asked_where_the_number_counts_at_once(unlabelled, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "class Ones:\n"
        "    def predict(self, batch): return np.ones((len(batch), 1, 4)) / 4\n"
        "def network(**told): return Ones()\n"
    )
    alone = {"scheme": "none", "world": 3, "singles": 2, "save": "scores"}
    assert plan_of(unlabelled, **alone, single=f"{tmp_path / 'mine.py'}:network").classes == 4


def test_names_in_a_file_must_be_those_of_shards_and_labels(shards, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    with pytest.raises(DataFault, match="labels 0 to 1, but the shards have label 2"):
        plan_of(shards, class_names_file=str(names))
    names.write_text("a\nb\nc\n")
    assert plan_of(shards, class_names_file=str(names)).class_names == ("a", "b", "c")
    named = tmp_path / "named.h5"
    write_shard(named, np.zeros((2, 6, 6, 1), np.uint8), np.arange(2), class_names=["a", "b", "x"])
    with pytest.raises(DataFault, match=r"class 2 is 'c' in --class-names-file .* and 'x' in"):
        plan_of((str(named),), class_names_file=str(names))


def test_networks_of_ones_own_that_count_otherwise_are_refused():
    def hello(**classes: int) -> Hello:
        return replace(HELLO, classes=classes)

    specs = {"single": "my:net", "collage": "my:other", "stage1": "null"}
    same = {1: hello(single=7), 2: hello(collage=7, stage1=10)}
    assert counted_classes(same, specs) == 7
    assert counted_classes({1: hello(single=7)}, {"single": "null"}) is None
    with pytest.raises(DataFault, match=r"7 \(single, rank 1\), 8 \(collage, rank 2\)"):
        counted_classes({1: hello(single=7), 2: hello(collage=8)}, specs)


def test_pictures_are_read_as_a_named_network_wants_them(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", 6)
    photos = (str(tmp_path / "photos"),)
    monkeypatch.setattr("collage_mpi.job.plan.describe", lambda *_: None)
    alone = {"scheme": "none", "single": "timm:net", "world": 3, "singles": 2}

    def plan_for(names: tuple[str, ...] = (), classes: int = 3, **more: object):
        found = replace(told(classes, names, (8, 8, 3)), resize_px=9, filter="bicubic")
        monkeypatch.setattr("collage_mpi.job.plan.ask", lambda *_: found)
        return plan_of(photos, **{**alone, **more})

    plan = plan_for(("cat", "bee", "ant"))
    assert plan.shards.infos[0].fit == "crop 8 x 8 x 3 from 9 by bicubic"
    assert plan.shards.labels().tolist() == [2, 2, 1, 1, 0, 0]
    [entry] = fixed_facts(plan)["shards"]
    assert (entry["source"], entry["fit"]) == ("folder", "crop 8 x 8 x 3 from 9 by bicubic")
    assert plan_for(("cat", "dog", "elk")).shards.labels() is None
    assert plan_for(resize_px=12).shards.infos[0].fit == "crop 8 x 8 x 3 from 12 by bicubic"
    assert plan_for(fit="letterbox").shards.infos[0].fit == "letterbox 8 x 8 x 3 by bicubic"
    with pytest.raises(DataFault, match=r"5 in single .*--input-labels none if folders are no cl"):
        plan_for(classes=5)
    assert plan_for(classes=5, input_labels="none").classes == 5


def test_small_pictures_are_not_enlarged_without_a_word(tmp_path, caplog):
    files = write_folder(tmp_path / "photos")
    for px, small in ((40, len(files)), (10, 0)):
        caplog.clear()
        warn_of_small_pictures(plan_of((str(tmp_path / "photos"),), scheme="none", image_px=px))
        said = (
            f"{small} of 12 pictures looked at are enlarged, because their shorter edge is resized"
        )
        assert (said in caplog.text) == bool(small) == ("enlarged" in caplog.text)


@pytest.mark.parametrize(("complete", "written"), [(False, [0]), (True, [0, 1, 2])])
def test_a_summary_waits_for_the_last_rows_of_a_complete_run_alone(monkeypatch, complete, written):
    """Of a run on which others work rows may come for hours."""
    part, counts, summaries = SimpleNamespace(table="images", session=1), [1, 2, 2], list[int]()

    def found(count: int) -> SimpleNamespace:
        manifest = {"sessions": [{"session": 1}]}
        return SimpleNamespace(path="out", parts=(part,) * count, manifest=manifest)

    monkeypatch.setattr(run_module, "open_run", lambda path: found(counts.pop(0)))
    monkeypatch.setattr(run_module, "write_summary", lambda run: summaries.append(len(run.parts)))
    run_module.last_summary(found(0), complete=complete)
    assert summaries == written


def test_a_summary_waits_for_what_each_job_with_rows_says(monkeypatch):
    part, entries = (
        SimpleNamespace(table="images", session=1, is_lease=False),
        [[], [{"session": 1}]],
    )
    slept, summaries = list[float](), list[int]()

    def found(sessions: list[dict[str, int]]) -> SimpleNamespace:
        return SimpleNamespace(path="out", parts=(part,), manifest={"sessions": sessions})

    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(run_module, "open_run", lambda path: found(entries[len(slept) - 1]))
    monkeypatch.setattr(
        run_module, "write_summary", lambda run: summaries.append(len(run.manifest["sessions"]))
    )
    run_module.last_summary(found([]), complete=True)
    assert (summaries, slept) == ([1], [1.0, 1.0])
