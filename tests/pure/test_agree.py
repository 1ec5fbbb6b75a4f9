"""--agree: the images that are drawn, what is asked of them, and the threshold that jobs share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.promise import Answer, Promise
from collage_mpi.bounds.sample import Asked, Candidate
from collage_mpi.core.events import Judged
from collage_mpi.core.schemes import make_scheme
from collage_mpi.errors import UsageError
from collage_mpi.job import run as runs
from collage_mpi.job.agreed import Agreed
from collage_mpi.job.changeover import Changeover
from collage_mpi.job.handshake import ServiceCosts, roll_call
from collage_mpi.job.messages import Hello, Start
from collage_mpi.job.pairs import AgreementWatch, Heard, Pair, PairBook, drawn_first, pairs_of
from collage_mpi.job.plan import Plan, run_order
from collage_mpi.ledger.owner import LOOK_S, join
from collage_mpi.ledger.records import Run
from collage_mpi.ledger.store import FolderStore
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.rows import AUDIT_CODE, IMAGES, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings, with_accept_of, with_every_answer
from collage_mpi.shards.order import Order, Permutation, Shuffle
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.system import files
from tests.paper import PAPER


def cascade(**more) -> RunSettings:
    return RunSettings(scheme="cascade", **more)


# ---- settings ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"scheme": "collage"}, "--scheme cascade"),
        ({"confidence": 0.9}, "leave out --confidence"),
        ({"deadline_ms": 9.0}, "whatever its"),
        ({"agree": 1.0}, "between 0 and 1"),
        ({"agree": 0.0}, "between 0 and 1"),
        ({"top_k": 3}, "only the class is promised, with --top-k 5"),
        ({"top_k": 5, "save": "scores"}, "Leave out --top-k and --save"),
        ({"save": "scores"}, "Leave out --top-k and --save"),
    ],
)
def test_what_does_not_go_together_is_refused(given, named) -> None:
    with pytest.raises(UsageError, match=named):
        RunSettings(**{"agree": 0.98, "scheme": "cascade", **given})


def test_a_simulation_is_told_a_score_and_a_forecast_takes_every_answer() -> None:
    with pytest.raises(UsageError, match="the score that a run told"):
        assert SimulatedJob(cascade(agree=0.98), 90).effective
    assert with_every_answer(cascade(agree=0.98)).agree is None


def test_auto_stays_where_the_run_chooses() -> None:
    asked = cascade(agree=0.98, single="a.safetensors", collage="b.safetensors")
    assert with_accept_of(asked, {}) is asked
    assert asked.accept_policy().needs_scores
    assert asked.labels()["accept"] == "agree 0.98"


@pytest.mark.parametrize(
    ("given", "scheme", "first"),
    [
        ({"single": "s", "agree": 0.99}, "cascade", ["s@bfloat16"]),
        ({"single": "s", "collage": "c", "agree": 0.99}, "cascade", ["collage"]),
        ({"single": "s", "collage": "c", "first": ["q"], "agree": 0.99}, "cascade", ["q"]),
        ({"single": "s", "collage": "c"}, "collage", []),
        ({"single": "s"}, "none", []),
        ({"single": "s", **PAPER}, "collage", []),
    ],
)
def test_the_usual_scheme_and_its_first_network(given, scheme, first) -> None:
    found = RunSettings.from_mapping(given)
    assert (found.scheme, [each.text for each in found.stages]) == (scheme, first)


def test_audits_by_share_are_for_thresholds_that_no_promise_audits() -> None:
    assert [cascade().audit_share, cascade(agree=0.9).audit_share] == [0.01, 0.0]
    assert cascade(agree=0.9, audit=0.2).audit_share == 0.2


# ---- the order --------------------------------------------------------------


def test_drawn_images_come_first_by_the_draw_and_the_others_as_they_were() -> None:
    order, every = Order(Shuffle(10_000, 1)), range(10_000)
    moved = drawn_first(order, 450)
    found = moved.indices(every)
    assert sorted(found) == list(every)
    assert moved.positions(found).tolist() == list(every)
    place = order.positions(np.arange(10_000))
    assert place[found[:450]].tolist() == Draw(10_000, 0).first(450)
    assert (np.diff(place[found[450:]]) > 0).all()
    assert (drawn_first(order, 0).indices(every) == order.indices(every)).all()


def test_a_job_draws_if_it_is_large_enough_and_shuffles_if_that_is_as_good() -> None:
    asked = cascade(agree=0.99, first=("q",))
    moved = run_order(asked, 2_000).indices(range(2_000))
    assert moved.tolist() == Draw(2_000, 0).first(2_000)  # all may be needed
    assert run_order(asked, 699).indices(range(699)).tolist() == list(range(699))
    large = run_order(asked, 100_000).indices(range(100_000))
    assert large[:10_500].tolist() == Draw(100_000, 0).first(10_500)
    assert (np.diff(large[10_500:]) > 0).all()
    shuffled = replace(asked, order="shuffle:3")
    expected = Shuffle(2_000, 3).indices(np.arange(2_000))
    assert (run_order(shuffled, 2_000).indices(range(2_000)) == expected).all()


def test_collages_are_of_images_from_all_over_a_run_that_promises() -> None:
    """What a collage says of an image depends on the others."""
    found = run_order(cascade(agree=0.99, limit=900), 5_000).indices(range(900))
    assert sorted(found) == list(range(900))  # the first 900 of the files
    assert np.abs(np.diff(found)).mean() > 200
    assert run_order(cascade(), 900).indices(range(900)).tolist() == list(range(900))


@pytest.mark.parametrize("order", ["file", "shuffle:3"])
@pytest.mark.parametrize("limit", [None, 30])
def test_a_run_over_some_images_has_these_in_its_order(order, limit, tmp_path) -> None:
    some = np.random.default_rng(0).permutation(5_000)[:900]
    (tmp_path / "some.txt").write_text("\n".join(map(str, some)))
    settings = RunSettings(only=str(tmp_path / "some.txt"), order=order, limit=limit)
    found = run_order(settings, 5_000)
    whole = run_order(RunSettings(order=order), 5_000).indices(range(5_000))
    expected = whole[np.isin(whole, some)][:limit]
    assert found.indices(range(len(found))).tolist() == expected.tolist()
    assert np.concatenate([*found.ascending()]).tolist() == sorted(expected)


def test_a_promise_about_some_images_draws_from_these(tmp_path) -> None:
    (tmp_path / "some.txt").write_text("\n".join(map(str, range(0, 5_000, 2))))
    asked = cascade(agree=0.99, only=str(tmp_path / "some.txt"))
    for first in ((), ("q",)):  # collages are shuffled, pictures drawn
        found = run_order(replace(asked, first=first), 5_000).indices(range(2_500))
        assert sorted(found) == list(range(0, 5_000, 2))
        assert np.abs(np.diff(found[:1_000])).mean() > 1_000


NONE_LOST = SimpleNamespace(lost={})


# ---- pairs ------------------------------------------------------------------


def book_of(front: int, shards=NONE_LOST) -> tuple[PairBook, list[Pair]]:
    """A book for an order of 300 images, and what it says."""
    said: list[Pair] = []
    book = PairBook(front, Order(Permutation(300)), shards)
    book.tell(said.extend)
    return book, said


def test_the_book_knows_its_images_and_says_each_pair_once() -> None:
    book, said = book_of(2)
    assert book.draws(7, np.array([1, 2])).tolist() == [True, False]
    assert book.draws(9, np.array([2, 3])) is None
    book.judged(Judged(7, {"stage1": (0.5, False)}, False))
    book.judged(Judged(8, {}, False))
    book.judged(Judged(9, {"stage1": (0.5, True)}, False))  # an audit that is not of the draw
    book.look()
    book.look()
    assert said == [Pair(1, {"stage1": Answer(0.5, differs=False)})]


def test_images_of_a_shard_that_is_lost_are_not_waited_for() -> None:
    shards = SimpleNamespace(lost={}, locate=lambda index: divmod(index, 100))
    book, said = book_of(205, shards)
    book.expect([(0, 3), (101, 103), (207, 208)])
    assert book.draws(1, np.array([102])).all()
    book.look()
    assert said == []
    shards.lost[1] = "truncated"
    book.look()
    book.look()
    assert said == [Pair(101, {})]  # 102 had come in by then
    shards.lost[2] = "gone"
    book.expect([(203, 209)])  # it is lost already; what is beyond 204 is not drawn
    book.look()
    assert said[1:] == [Pair(at, {}) for at in (203, 204)]


def test_rows_give_the_same_pairs() -> None:
    rows = np.zeros(7, IMAGES.dtype)
    sources = ("single", "collage", "retry", "error", "single", "collage", "stage2")
    rows["source"] = [SOURCE_CODE[name] for name in sources]
    rows["audited"] = [
        AUDIT_CODE[each] for each in ("done", "done", "", "", "done", "failed", "done")
    ]
    rows["score"], rows["other_score"], rows["other2_score"] = 0.75, 0.25, 0.5
    rows["stages"] = [1 | 8, 0, 0, 0, 3 | 16, 0, 16]
    rows["position"] = [3, 1, 0, 2, 5, 4, 6]
    assert pairs_of(rows, ("collage", "stage2")) == [
        Pair(3, {"collage": Answer(0.25, differs=True)}),
        Pair(1, {"collage": Answer(0.75, differs=False)}),
        Pair(0, {}),
        Pair(2, {}),
        Pair(5, {"collage": Answer(0.25, differs=False), "stage2": Answer(0.5, differs=True)}),
        Pair(4, {}),
        Pair(6, {"stage2": Answer(0.75, differs=True)}),
    ]


# ---- the threshold, which jobs share -------------------------------------------


ASKED, CHEAP = Asked(10_000, 0.98, 1.0), Candidate("stage1", 0.0, 0.1)


class Jobs:
    """Two jobs of a run, and what each goes by."""

    def __init__(
        self,
        folder: Path,
        asked: Asked = ASKED,
        candidates: Sequence[Candidate] = (CHEAP,),
        hows: tuple[str, str] = ("torch bfloat16",) * 2,
    ) -> None:
        kinds = [each.name for each in candidates]
        stages = [SimpleNamespace(kind=kind, text=f"net{kind[-1]}") for kind in kinds]
        settings = SimpleNamespace(out=str(folder), stages=stages, agree_on="class")
        plan = SimpleNamespace(settings=settings, front=9_000)
        self.store, self.now_s = FolderStore(folder), 0.0
        self.store.make()
        join(self.store, Run(1, 0, 1000, 1000, by="a" * 32, settings={}))
        promises = [Promise(asked, candidates) for _ in range(2)]
        self.jobs = [
            Agreed(self.store, plan, session, promise, dict.fromkeys(kinds, how), self.clock)
            for session, (promise, how) in enumerate(zip(promises, hows, strict=True), 1)
        ]

    def clock(self) -> float:
        return self.now_s

    def heard(self) -> list[list[Heard]]:
        """What is new to each job, LOOK_S later."""
        self.now_s += LOOK_S
        return [job.turn() for job in self.jobs]

    def turns(self) -> list[list[float | None]]:
        """The scores that are new to each job, LOOK_S later."""
        return [[each.threshold.confidence for each in job] for job in self.heard()]


def pairs(differing=lambda at: False, images: int = 1_000) -> list[Pair]:
    """Images of which one half has a score of 0.9, and the others 0.5."""
    answers = [Answer((0.9, 0.5)[at % 2], differing(at)) for at in range(images)]
    return [Pair(at, {"stage1": answer}) for at, answer in enumerate(answers)]


def test_who_has_all_pairs_makes_the_threshold_of_all_jobs(tmp_path, caplog):
    both = Jobs(tmp_path)
    both.jobs[1].pairs(pairs()[:200])
    assert both.turns() == [[], []]
    both.jobs[1].pairs(pairs()[200:])
    assert both.turns() == [[], [0.5]]
    assert both.turns() == [[0.5], []]
    assert both.turns() == [[], []]
    assert [job.number for job in both.jobs] == [1, 1]
    assert "an answer of net1 counts from a score of 0.5 on" in caplog.text
    assert "0 of 100 audited ones differ" in caplog.text
    assert "at most 2 % of all answers change" in caplog.text


def test_of_several_candidates_one_is_chosen_and_the_record_names_it(tmp_path, caplog):
    """The first one is cheaper, and wrong of each third image; the other one may lack then."""
    both = Jobs(tmp_path, candidates=[CHEAP, Candidate("stage2", 0.0, 0.2)])
    answered = [
        pair._replace(
            answers={
                "stage1": Answer(0.9, pair.place % 3 == 0),
                "stage2": pair.answers["stage1"],
            }
        )
        for pair in pairs()
    ]
    both.jobs[0].pairs(answered[:150])
    assert both.heard() == [[], []]
    both.jobs[0].pairs(answered[150:200])
    assert both.heard() == [[Heard(("stage2",), None)], []]
    assert both.heard() == [[], []]
    both.jobs[0].pairs(
        pair._replace(answers={"stage2": pair.answers["stage2"]}) for pair in answered[200:]
    )
    mine, theirs = both.heard()
    assert [(each.kinds, each.threshold.confidence) for each in mine] == [(("stage2",), 0.5)]
    assert theirs == mine
    held = json.loads((tmp_path / "thresholds/1.json").read_text())
    assert (held["candidate"], held["confidence"], held["how"]) == ("stage2", 0.5, "torch bfloat16")
    assert "an answer of net2 counts from a score of 0.5 on" in caplog.text
    assert "the first 200 through net1 and net2; 100 % of" in caplog.text


def test_what_costs_too_much_to_try_is_not_asked(tmp_path):
    both = Jobs(tmp_path, candidates=[CHEAP, Candidate("stage2", 0.0, 0.95)])
    assert both.heard() == [[Heard(("stage1",), None)]] * 2
    assert both.heard() == [[], []]


def test_the_folder_of_thresholds_outlives_a_loss_of_power(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    Jobs(tmp_path)
    assert synced == [tmp_path] * 2  # by each job: the other one may have ended before it did


def test_a_threshold_that_another_job_has_made_meanwhile_counts(tmp_path, caplog):
    both = Jobs(tmp_path)
    both.jobs[1]._look_s = 1e9  # it does not look before it decides
    both.jobs[0].pairs(pairs())
    assert both.turns() == [[0.5], []]
    caplog.clear()
    both.jobs[1].pairs(pairs(lambda at: at % 2 == 1))
    assert both.turns()[1] == [0.5]
    assert caplog.text == ""


def test_a_job_whose_first_stage_answers_in_another_way_leaves_the_threshold_out(tmp_path, caplog):
    both = Jobs(tmp_path, hows=("openvino bfloat16", "torch bfloat16"))
    both.jobs[0].pairs(pairs())
    assert both.turns() == [[0.5], [None]]
    assert (
        "is for a first network in openvino bfloat16, and here it answers in torch" in caplog.text
    )
    assert [job.number for job in both.jobs] == [1, 1]


@pytest.mark.parametrize(
    ("images", "cost", "differing", "said"),
    [
        (900, 0.1, None, "the job has 900 images, and a first network pays from 1,069 on"),
        (10_000, 1.1, None, "an image takes 1.10 times as long on the first network"),
        (10_000, 0.5, lambda at: at % 2 == 0, "200 drawn images went through both networks, and"),
        (10_000, 0.1, lambda at: at >= 200 and at % 2 == 0, "no score of net1 is proved to change"),
        (10_000, 0.1, lambda at: at >= 450, "and 6 of 64 audited answers differ: the single"),
    ],
)
def test_where_no_threshold_pays_the_single_network_goes_on_alone(
    tmp_path, caplog, images, cost, differing, said
):
    asked = replace(ASKED, images=images)
    both = Jobs(tmp_path, asked, [replace(CHEAP, image_s=cost)])
    both.jobs[0].pairs(pairs(differing or (lambda at: False)))
    assert both.turns()[0] == [None]
    assert said in caplog.text
    assert "the single network classifies every image" in caplog.text


def test_an_image_that_lacks_an_answer_is_left_out(tmp_path):
    both = Jobs(tmp_path)
    lacking = [pair._replace(answers={}) for pair in pairs()[::9]]
    both.jobs[0].pairs([*lacking, *(pair for pair in pairs() if pair.place % 9)])
    assert both.turns()[0] == [0.5]
    held = both.jobs[0]._held.threshold
    assert held.drawn - held.proved == pytest.approx(100 * 9 / 8, abs=1)


@pytest.mark.parametrize(
    ("first", "batch", "ratio"),
    [((), 1, 0.5 / 9), (("q",), 1, 0.1), (("q",), 4, 0.1)],
)
def test_the_price_is_that_of_an_image_in_the_batches_that_are_sent(first, batch, ratio):
    plan = SimpleNamespace(
        settings=RunSettings(scheme="cascade", first=first, agree=0.98, batch=batch),
        order=Order(Permutation(1_000)),
    )
    costs = ServiceCosts(
        {},
        {},
        dict.fromkeys(("collage", "stage1"), 0.5),
        {"stage1": 0.1, "single": 0.5},
        batch,
        None,
    )
    promise = runs.build_promise(plan, costs, SimpleNamespace(record=lambda kind: None))
    assert promise.candidates[0].image_s == pytest.approx(ratio, abs=0.026)
    assert promise.asked == Asked(1_000, 0.98, 1.0)


def test_the_price_of_networks_that_were_made_is_what_they_were_timed_at():
    plan = SimpleNamespace(
        settings=RunSettings(scheme="cascade", first=("q",), agree=0.98, batch=1),
        order=Order(Permutation(1_000)),
    )
    own_ms = {"stage1": 3.0, "single": 4.0}
    change = SimpleNamespace(record=lambda kind: SimpleNamespace(own_ms=own_ms[kind]))
    promise = runs.build_promise(plan, ServiceCosts({}, {}, {"stage1": 9.9}, {}, 1, None), change)
    assert promise.candidates[0].image_s == 0.75


@pytest.mark.parametrize(("made", "ratio"), [("single", 0.8), ("stage1", 0.2)])
def test_a_network_that_stays_in_torch_is_priced_beside_one_that_does_not(made, ratio):
    plan = SimpleNamespace(
        settings=RunSettings(scheme="cascade", first=("q",), agree=0.98, batch=1),
        order=Order(Permutation(1_000)),
    )
    records = {made: SimpleNamespace(own_ms=1.0, times=2.0)}
    costs = ServiceCosts({}, {}, {"stage1": 0.4}, {}, 1, None)
    promise = runs.build_promise(plan, costs, SimpleNamespace(record=records.get))
    assert promise.candidates == [Candidate("stage1", 0.0, ratio)]


def test_images_that_come_to_a_run_later_are_not_promised():
    facts = (Order(Permutation(2_000)), *[None] * 4)
    plan = Plan(cascade(agree=0.99, first=("q",)), None, *facts)
    assert (plan.promises, plan.front) == (True, 2_000)
    later = replace(plan, first=2_000)
    assert (later.promises, later.front) == (False, 0)
    assert not replace(plan, settings=cascade(first=("q",))).promises


def hello(how="bfloat16", device="cpu", kinds=("single", "stage1")):
    tuning = dict.fromkeys(kinds, how)
    held = {"kinds": kinds, "devices": (device,), "tuning": tuning, "fingerprints": {}}
    told = {"service_ns": {}, "longest_ns": 0, "classes": {}, "columns": (), "cannot_read": ""}
    return Hello(host="host", pid=1, **held, **told)


@pytest.mark.parametrize(
    ("runtime", "said"),
    [("openvino", "openvino bfloat16"), ("torch", "bfloat16 on cpu"), (None, "bfloat16 on cpu")],
)
def test_how_a_stage_answers_is_the_same_word_whoever_found_that_torch_is_quickest(runtime, said):
    record = runtime and SimpleNamespace(runtime=runtime, how=f"{runtime} bfloat16")
    hellos = {1: hello(device="cuda:0"), 2: hello(), 3: hello(), 4: hello(kinds=("single",))}
    made = {"stage1": record, "single": None}
    waited = []  # nothing is made before
    change = SimpleNamespace(
        record=lambda kind: made[kind] if waited else None,
        folders={"stage1": "a", "single": "b"},
        wait=waited.append,
    )
    start = Start({}, {}, 1, 2, 3, {"stage1": "a", "single": "b"})
    start, found = runs.steady(start, ("stage1",), hellos, change, lambda: None)
    assert (found, start.steady) == ({"stage1": said}, {"stage1": "bfloat16 on cpu"})
    assert start.runtimes == ({"stage1": "a"} if record else {})  # what could not be made is left


def test_ranks_that_answer_otherwise_than_is_promised_get_exact_work_only(caplog):
    hellos = {1: hello(), 2: hello(device="cuda:1"), 3: hello("float32"), 4: hello()}
    plan = SimpleNamespace(placement=SimpleNamespace(workers=(1, 2, 3, 4)))
    lost = {4: SimpleNamespace(why="killed")}
    group = SimpleNamespace(detector=SimpleNamespace(timeouts=SimpleNamespace(losses=lost)))
    ready, gone, _ = roll_call(plan, group, hellos, {"stage1": "bfloat16 on cpu"})
    both, alone = {"single", "stage1"}, {"single"}
    assert [set(each.kinds) for each in ready] == [both, alone, alone]
    assert gone == {4: "killed"}
    assert "rank 2 gets no task of the stage1 network" in caplog.text
    assert [set(each.kinds) for each in roll_call(plan, group, hellos, {})[0]] == [both] * 3


@pytest.mark.parametrize(("first", "least"), [((), 9), (("q",), 3)])
def test_collages_stay_full_after_the_choice_as_those_were_that_chose(first, least):
    scheme = make_scheme(cascade(agree=0.99, first=first).scheme_settings())
    kind = scheme.stages[0]
    table = SimpleNamespace(position=np.arange(4))
    ranks = SimpleNamespace(ready={"single": [1], kind: [1]})
    fresh = SimpleNamespace(count=4, parts=[np.arange(4)])
    settings = SimpleNamespace(group_size=9, costs={})
    core = SimpleNamespace(settings=settings, ranks=ranks, fresh=fresh, table=table, next=4)
    assert scheme.least(core, kind) == 9
    scheme.calibrating = False
    assert scheme.least(core, kind) == least
    core.next = 9  # no image comes to this group any more
    assert scheme.least(core, kind) == min(least, 1 if kind == "collage" else 3)


def test_networks_are_waited_for_until_they_are_made_or_the_job_is_to_stop():
    ended = Event()
    change = Changeover.__new__(Changeover)
    change._requests, change._thread = [("stage1", {})], Thread(target=ended.wait)
    change._thread.start()
    change.wait(lambda: "SIGTERM")
    assert change._thread.is_alive()
    looks = iter([None, None])

    def look() -> None:
        if next(looks, 0) == 0:
            ended.set()

    change.wait(look)
    assert not change._thread.is_alive()


# ---- a threshold of a weights file ------------------------------------------

SPEC = AcceptSpec(0.85, "f" * 64, 0.99, drawn=10_000, share=0.5, changed=0.004)


@pytest.mark.parametrize(
    ("spec", "differing", "warned"),
    [
        (SPEC, 20, False),  # of 1,000: 1 % of all images are 2 % of the half that counts
        (SPEC, 30, False),  # more, but by chance it may be
        (SPEC, 50, True),
        (SPEC, 0, False),
        (replace(SPEC, agree=0.98), 50, False),
        (replace(SPEC, share=0.25), 50, False),
        (None, 900, False),  # no threshold of a file
    ],
)
def test_less_agreement_than_the_file_says_is_warned_of_once(
    caplog, spec, differing, warned
) -> None:
    watch = AgreementWatch(spec)
    for _ in range(2):
        watch.look(1_000, differing)
    told = [record.message for record in caplog.records]
    assert len(told) == warned
    assert not told or "50 of 1,000 audited answers" in told[0]
    assert not told or "weights file promises at most 2 %" in told[0]
