"""Training and evaluate through the command line, on tiny shards with tiny nets."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows_by_name import cells_of

from collage_mpi.cli import main
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import Loading
from collage_mpi.models.weights import describe_weights, read_tensors, save_weights
from collage_mpi.shards import write_shard
from collage_mpi.simulation.simulator import read_answers

torch = pytest.importorskip("torch")

NAMES = ("dark", "left", "right")
NET = ["--stem", "8x3/2", "--stages", "16x1/2"]


def make_shard(path: Path, n: int, seed: int, names: tuple[str, ...] = NAMES) -> Path:
    """8 x 8 images of three classes that a tiny net can learn: nothing, left or right lit."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    images = random.integers(0, 40, (n, 8, 8, 1), dtype=np.uint8)
    images[labels == 1, :, :4] += 150
    images[labels == 2, :, 4:] += 150
    write_shard(path, images, labels, class_names=names, source="test")
    return path


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard(tmp_path_factory.mktemp("shards") / "train.h5", 600, 0)


def train(kind: str, shard: Path, out: Path, *more: str) -> int:
    words = ["train", kind, "--shards", str(shard), "--out", str(out), *NET, "--epochs", "3"]
    return main([*words, "--batch", "16", "--no-flips", "--shift-px", "0", *more])


@pytest.fixture(scope="module")
def weights(shard: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {kind: folder / f"{kind}.safetensors" for kind in ("single", "collage")}
    assert train("single", shard, paths["single"]) == 0
    assert train("collage", shard, paths["collage"], "--side", "2", "--epochs", "8") == 0
    return paths


def test_both_networks_learn_and_evaluate_says_so(
    weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = make_shard(tmp_path / "test.h5", 101, 1)  # 101: the last collage has one image
    words = ["evaluate", "--shards", str(test), "--calls", "5"]
    both = ["--single", str(weights["single"]), "--collage", str(weights["collage"])]
    assert main([*words, *both, "--json"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    for line in ("single: 101 of 101 images", "collage: 101 of", "timing: 5 of 5 calls"):
        assert line in told.err  # how far it is, not in the JSON
    for kind in ("single", "collage"):
        entry = report["networks"][kind]
        assert entry["accuracy"] > 0.9
        assert entry["images"] == 101
        assert min(entry["flops"], entry["parameters"], entry["service_ns"]) > 0
        assert entry["tuning"] == "float32, channels-last"
    ratio = report["collage_over_single"]
    assert ratio["flops"] == pytest.approx(4, rel=0.1)
    assert ratio["parameters"] == pytest.approx(1)
    assert report["saving"]["thresholds"] == []  # of 101 images
    assert main([*words, *both, "--shuffle", "3", "--limit", "50", "--precision", "bfloat16"]) == 0
    text = capsys.readouterr().out
    assert "collage : single" in text
    assert "1 thread, bfloat16, channels-last. FLOP" in text
    assert "shuffle:3 order" in text
    assert "Saving: n/a. 50 images prove no score" in text


def test_a_threshold_goes_into_the_weights(
    weights: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(spec: str, kind: str, how: Loading) -> Any:
        assert how.tuning is not None
        asked.append(how.tuning.precision)
        return load_predictor(spec, kind, how)

    monkeypatch.setattr("collage_mpi.commands.networks.load_predictor", load)
    test, out = make_shard(tmp_path / "test.h5", 2000, 1), tmp_path / "out.safetensors"
    words = ["weights", "threshold", "--shards", str(test), "--single", str(weights["single"])]
    words += ["--collage", str(weights["collage"]), "--out", str(out)]
    assert main([*words, "--agree", "0.9999", "--precision", "bfloat16"]) == 4
    assert "--agree 0.9999 needs 50,200. Give more shards" in capsys.readouterr().err
    assert not out.exists()
    assert asked == []
    assert main([*words, "--agree", "0.98"]) == 0
    text = capsys.readouterr().out
    single, made = describe(str(weights["single"]), "single"), describe(str(out), "collage")
    assert single is not None
    assert made is not None
    assert made.accept is not None
    assert (made.accept.single, made.accept.agree) == (single.fingerprint, 0.98)
    assert made.accept.drawn == 2000
    assert f"from a score of {made.accept.confidence:g}. With a probability of 95 % at" in text
    assert "Accuracy, which is not promised: " in text
    assert asked == ["float32"] * 2
    assert "(median of 100 calls, float32, channels-last, on cpu)" in text
    ratio = number_after("4 images at once take ", text)
    row = next(line for line in text.splitlines() if line.startswith("0.98, in the file"))
    assert float(row.split()[-2]) == pytest.approx(
        1 / (ratio / 4 + 1 - made.accept.share), rel=0.05
    )
    words = ["evaluate", "--shards", str(test), "--single", str(weights["single"])]
    words += ["--collage", str(out), "--calls", "9"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["saving"]
    assert found["ratio"] == report["collage_over_single"]["service"]
    assert found["in_file"]["share"] == pytest.approx(made.accept.share, abs=1e-3)
    assert found["in_file"]["changed"] == pytest.approx(made.accept.changed, abs=1e-3)
    words[4] = str(stranger(weights["single"], tmp_path))
    assert main(words) == 0  # the threshold is of another single network
    told = capsys.readouterr().out
    assert "Saving: images a rank-second" in told
    assert "in the file" not in told


def test_a_quick_network_gets_a_threshold_and_its_answers_are_saved(
    weights: dict[str, Path], shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, quick = make_shard(tmp_path / "test.h5", 2000, 1), tmp_path / "quick.safetensors"
    assert train("single", shard, quick, "--stem", "4x3/2", "--seed", "1") == 0
    single = ["--single", str(weights["single"])]
    words = ["weights", "threshold", "--shards", str(test), *single, "--first"]
    assert main([*words, str(weights["single"])]) == 2
    assert "is the same network as --single" in capsys.readouterr().err
    assert main([*words, str(quick)]) == 0  # into its own file
    made, text = describe_weights(quick), capsys.readouterr().out
    assert made.accept is not None
    assert made.accept.single == describe_weights(weights["single"]).fingerprint
    assert "9 images at once take " in text
    words = ["evaluate", "--shards", str(test), *single, "--first", str(quick), "--calls", "5"]
    words += ["--json", "--save-answers", str(tmp_path / "a.npz"), "--side"]
    assert main([*words, "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    entry, found = report["networks"]["stage1"], report["saving"]
    assert (entry["batch"], found["cells"]) == (4, 4)
    assert found["ratio"] * report["networks"]["single"]["service_ns"] == pytest.approx(
        entry["batch_service_ns"]
    )
    assert found["in_file"]["share"] == pytest.approx(made.accept.share, abs=0.05)
    saved = read_answers(tmp_path / "a.npz", 2)
    assert set(saved.known) == {"single", "stage1"}
    pairs = zip(saved.known["stage1"], saved.labels, strict=True)
    right = np.mean([a is not None and a[0] == b for a, b in pairs])
    assert right == pytest.approx(entry["accuracy"], abs=1e-3)
    words.remove("--json")
    assert main([*words, "2"]) == 0
    assert "A batch of 4 by the stage1 network takes " in capsys.readouterr().out


def number_after(words: str, text: str) -> float:
    return float(text.partition(words)[2].split()[0])


def stranger(single: Path, folder: Path) -> Path:
    """The same network in a file of another fingerprint."""
    info = describe_weights(single)
    save_weights(
        folder / "s.safetensors", read_tensors(info), {**info.metadata, "temperature": 1.5}
    )
    return folder / "s.safetensors"


def test_train_tells_the_saving_beside_the_teacher_by_its_validation_split(
    weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, apart = make_shard(tmp_path / "d.h5", 2600, 3), ["--validation", "0.8"]
    assert train("single", data, tmp_path / "single", *apart) == 0
    words = ["--side", "2", *apart, "--teacher"]
    assert train("collage", data, tmp_path / "a", *words, str(tmp_path / "single")) == 0
    told = capsys.readouterr().out
    assert "2,080 images were drawn" in told
    assert "another part of the images" not in told
    assert told.splitlines()[-1].startswith("Saving: images a rank-second")
    assert train("collage", data, tmp_path / "b", *words, str(weights["single"])) == 0
    assert "may have seen images of this validation split" in capsys.readouterr().out
    assert train("single", data, tmp_path / "q", *apart, "--teacher", str(tmp_path / "single")) == 0
    assert "9 images at once take " in capsys.readouterr().out
    assert train("collage", data, tmp_path / "c", "--side", "2") == 0
    assert "n/a, because it needs the single network to compare with" in capsys.readouterr().out


def test_saved_answers_are_those_of_the_networks(
    weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, file = make_shard(tmp_path / "test.h5", 11, 1), tmp_path / "answers.npz"
    words = ["evaluate", "--shards", str(test), "--calls", "1", "--json"]
    both = ["--single", str(weights["single"]), "--collage", str(weights["collage"])]
    assert main([*words, *both, "--save-answers", str(file)]) == 0
    report = json.loads(capsys.readouterr().out)
    with np.load(file, allow_pickle=False) as saved:
        found = {name: saved[name] for name in saved.files}
    assert (int(found["version"]), int(found["side"])) == (1, 2)
    assert found["class_names"].tolist() == list(NAMES)
    types = {
        "labels": "i8",
        "single_class": "i2",
        "single_score": "f4",
        "collage_class": "i2",
        "collage_score": "f4",
        "collage_absent": "?",
    }
    for name, kind in types.items():
        assert (found[name].shape, found[name].dtype) == ((11,), np.dtype(kind)), name
    for kind in ("single", "collage"):
        right = (found[f"{kind}_class"] == found["labels"]).mean()
        assert right == pytest.approx(report["networks"][kind]["accuracy"])
        assert ((found[f"{kind}_score"] > 1 / 3) & (found[f"{kind}_score"] <= 1)).all()
    assert not found["collage_absent"].any()
    for more, code in (
        (both[:2], 2),
        ([*both, "--shuffle", "1"], 2),
    ):
        assert main([*words, *more, "--save-answers", str(file)]) == code
    assert main([*words, *both, "--save-answers", str(tmp_path / "no" / "a.npz")]) == 3
    assert main([*words, *both, "--save-answers", str(tmp_path / "a.txt")]) == 2


def test_an_absent_cell_is_marked_in_the_saved_answers(tmp_path: Path) -> None:
    from collage_mpi.simulation.simulator import save_answers

    answers = {"single": cells_of([(1, 0.5), (2, 0.75)]), "collage": cells_of([None, (2, 0.25)])}
    save_answers(tmp_path / "a.npz", 2, np.array([1, 2]), answers, NAMES)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as saved:
        assert saved["collage_absent"].tolist() == [True, False]
        assert saved["collage_score"].tolist() == [0.0, 0.25]
        assert saved["single_class"].tolist() == [1, 2]


def test_metadata_tells_how_it_was_trained(weights: dict[str, Path]) -> None:
    info = describe(str(weights["collage"]), "collage")
    assert info is not None
    assert (info.side, info.cell_px, info.shape, info.class_names) == (2, 8, (16, 16, 1), NAMES)
    training = info.metadata["training"]
    assert (training["epochs"], training["seed"], training["sources"]) == (8, 0, ["test"])
    assert training["validation_images"] == 30
    assert training["validation_accuracy"] > 0.7
    assert "validation_ece" not in training  # fewer than 100 images fit no temperature
    assert len(training["history"]) == 8


@pytest.mark.parametrize(
    ("limit", "share", "expected"),
    [
        ("40", "0.1", "% (4 images: "),
        ("40", "0.1", "temperature 1.0 (the temperature needs at least 100 validation images"),
        ("40", "0", "validation accuracy n/a (no images were kept for it: --validation 0.05"),
    ],
)
def test_few_validation_images_are_said(
    shard: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    limit: str,
    share: str,
    expected: str,
) -> None:
    few = ["--epochs", "1", "--limit", limit, "--validation", share]
    assert train("single", shard, tmp_path / "w", *few) == 0
    assert expected in capsys.readouterr().out.splitlines()[-1]


def test_evaluate_warns_of_a_weak_collage(
    weights: dict[str, Path], shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = tmp_path / "weak"
    few = ["--epochs", "1", "--limit", "40", "--lr", "0.0001"]
    assert train("collage", shard, weak, "--side", "2", *few) == 0
    words = ["evaluate", "--shards", str(shard), "--calls", "1", "--json"]
    words += ["--single", str(weights["single"]), "--collage"]
    capsys.readouterr()
    for network, warned in ((weak, True), (weights["collage"], False)):
        assert main([*words, str(network)]) == 0
        told = capsys.readouterr()
        json.loads(told.out)
        assert ("points less often than the single network" in told.err) == warned


def test_the_calibration_error_is_recorded_before_and_after(shard: Path, tmp_path: Path) -> None:
    assert train("single", shard, tmp_path / "w", "--validation", "0.2") == 0
    info = describe(str(tmp_path / "w"), "single")
    assert info is not None
    training = info.metadata["training"]
    assert info.metadata["temperature"] != 1.0
    assert 0 <= training["validation_ece"] < training["validation_ece_untempered"] < 1


@pytest.mark.parametrize("distilled", [False, True])
def test_a_killed_run_goes_on_to_the_same_weights(
    shard: Path, weights: dict[str, Path], tmp_path: Path, distilled: bool
) -> None:
    from collage_mpi.commands import networks as command
    from collage_mpi.training.loop import Trainer
    from collage_mpi.training.sources import load

    more = ["--teacher", str(weights["single"]), "--ema", "0.9"] if distilled else []
    args = _arguments(shard, tmp_path / "w.safetensors", *more)
    data, _, settings = load(args, lambda shape: command.settings_of(args, shape))
    assert (data.teacher_logits is not None) == distilled
    whole = Trainer(data, settings, args)
    whole.run()

    args = replace(args, checkpoint=tmp_path / "checkpoint")
    first = Trainer(data, settings, args)
    for step in range(7):  # in the middle of the first epoch
        first._step(first.maker.make(first.maker.order(0)[step], 0, step))
    first._save()
    resumed = Trainer(data, settings, replace(args, resume=True))
    assert resumed.done == 7
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert [_results(row) for row in resumed.history[1:]] == [
        _results(row) for row in whole.history[1:]
    ]
    assert resumed.kept_epoch == whole.kept_epoch


@pytest.mark.parametrize(  # in an epoch, and its last: 11 steps of 16 images
    ("step", "number"), [(5, signal.SIGINT), (11, signal.SIGTERM), (5, signal.SIGUSR2)]
)
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    shard: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
) -> None:
    from collage_mpi.training.loop import Trainer

    few = ["--epochs", "2", "--limit", "200", "--precision", "float32"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train("single", shard, whole, *few) == 0
    plain, before = Trainer._step, signal.getsignal(number)

    def signalled(self: Trainer, batch: Any) -> float:
        if self.done + 1 == step:
            signal.raise_signal(number)
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "_step", signalled)
    assert train("single", shard, cut, *few) == 6
    assert signal.getsignal(number) == before
    told = capsys.readouterr().err
    checkpoint = tmp_path / "cut.checkpoint"
    assert f"stopped by {number.name} after step {step} of 22" in told
    assert str(checkpoint) in told
    assert "--resume" in told
    assert not cut.exists()
    saved = checkpoint.read_bytes()
    assert train("single", shard, cut, *few) == 2  # not without a word over what was done
    assert f"with --resume, or remove the checkpoint: rm {checkpoint}" in capsys.readouterr().err
    assert checkpoint.read_bytes() == saved
    monkeypatch.undo()
    assert train("single", shard, cut, *few, "--resume") == 0
    found, wanted = (read_tensors(describe_weights(path)) for path in (cut, whole))
    for name in wanted:
        assert np.array_equal(found[name], wanted[name]), name
    history = describe_weights(cut).metadata["training"]["history"]
    assert [row["epoch"] for row in history] == [1, 2]


def test_a_teacher_teaches_a_collage_and_its_answers_are_kept(
    shard: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "w", tmp_path / "w.teacher.npz"
    words = ["--side", "2", "--teacher", str(weights["single"]), "--distill-weight", "1"]
    assert train("collage", shard, out, *words, "--epochs", "8", "--ema", "0.9") == 0
    assert "the teacher looks at" in capsys.readouterr().err
    info = describe(str(out), "collage")
    assert info is not None
    training = info.metadata["training"]
    best = max(row["validation_accuracy"] for row in training["history"])
    assert best > 0.9  # learned from the teacher alone
    assert training["teacher"] == describe(str(weights["single"]), "single").fingerprint
    assert (tmp_path / "w.csv").read_text().count("\n") == 9

    before = cache.stat().st_mtime_ns
    assert train("collage", shard, out, *words, "--epochs", "8", "--ema", "0.9", "--resume") == 0
    assert cache.stat().st_mtime_ns == before
    cache.write_bytes(cache.read_bytes()[:300])  # a damaged cache is made again
    assert train("collage", shard, tmp_path / "v", *words, "--teacher-cache", str(cache)) == 0
    assert cache.stat().st_size > 300


def test_a_teacher_that_does_not_fit_is_refused(
    weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_shard(tmp_path / "o.h5", 40, 0, ("a", "b", "c"))
    wide = tmp_path / "wide.h5"
    images = np.zeros((40, 8, 9, 1), np.uint8)
    write_shard(wide, images, np.zeros(40, np.int64), class_names=NAMES)
    for shard, teacher, code, message in (
        (other, weights["single"], 4, "class 0 is 'a' in the shards and 'dark' in single network"),
        (wide, weights["single"], 4, "(8, 9, 1)"),
        (other, weights["collage"], 2, "wrong way round"),
    ):
        assert train("single", shard, tmp_path / "w", "--teacher", str(teacher)) == code
        assert message in capsys.readouterr().err


def test_the_best_epoch_is_kept(shard: Path, tmp_path: Path) -> None:
    for keep in ("best", "last"):
        out = tmp_path / keep
        assert train("single", shard, out, "--keep", keep, "--lr", "0.02") == 0
        info = describe(str(out), "single")
        assert info is not None
        training = info.metadata["training"]
        ranks = [(-r["validation_accuracy"], r["validation_loss"]) for r in training["history"]]
        wanted = 3 if keep == "last" else ranks.index(min(ranks)) + 1
        assert training["kept_epoch"] == wanted


def test_resume_refuses_other_settings_and_foreign_files(shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    assert train("single", shard, out, "--epochs", "1", "--limit", "200") == 0
    assert train("single", shard, out, "--epochs", "1", "--limit", "200", "--resume") == 0
    assert train("single", shard, out, "--epochs", "2", "--limit", "200", "--resume") == 2
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"not a checkpoint")
    assert train("single", shard, out, "--checkpoint", str(foreign), "--resume") == 4
    gone = ["--checkpoint", str(tmp_path / "gone"), "--resume"]
    assert train("single", shard, out, *gone) == 3


def test_divergence_is_told(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("single", shard, tmp_path / "w", "--lr", "1e20") == 4
    assert "lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--side", "7"], 2),
        (["--epochs", "0"], 2),
        (["--stages", "nonsense"], 2),
        (["--threads", "0"], 2),
        (["--limit", "2"], 4),
        (["--device", "cuda:99"], 3),
    ],
)
def test_wrong_flags_end_with_the_right_code(
    shard: Path, tmp_path: Path, more: list[str], code: int
) -> None:
    assert train("collage", shard, tmp_path / "w", *more) == code


def test_out_must_have_a_folder(shard: Path, tmp_path: Path) -> None:
    assert train("single", shard, tmp_path / "no" / "w") == 3


def test_unlabelled_shards_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "u.h5"
    write_shard(path, np.zeros((50, 8, 8, 1), np.uint8), source="test")
    assert train("single", path, tmp_path / "w") == 4


def test_evaluate_refuses_what_does_not_fit(
    weights: dict[str, Path], shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_shard(tmp_path / "o.h5", 20, 0, ("a", "b", "c"))
    wide = tmp_path / "wide.h5"
    labels = np.zeros(9, np.int64)
    write_shard(wide, np.zeros((9, 8, 9, 1), np.uint8), labels, class_names=NAMES)
    single, collage = str(weights["single"]), str(weights["collage"])
    for words, code, message in (
        ([shard], 2, "nothing to evaluate"),
        ([shard, "--single", collage], 2, "wrong way round"),
        ([shard, "--collage", collage, "--side", "3"], 4, "side 2"),
        ([other, "--single", single], 4, "class 0 is 'a' in the shards and 'dark' in"),
        ([wide, "--single", single], 4, "(8, 9, 1)"),
        ([wide, "--single", single], 4, f"`collage-mpi prep shards {wide} --size "),
        ([shard, "--single", str(shard)], 4, "not a safetensors"),
        ([shard, "--single", str(tmp_path / "none")], 3, "collage-mpi train"),
        ([shard, "--single", "null"], 2, "null network"),
    ):
        assert main(["evaluate", "--shards", *map(str, words)]) == code
        assert message in capsys.readouterr().err


def test_a_yolo_head_learns_and_answers_like_a_grid(
    weights: dict[str, Path], shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, test = tmp_path / "yolo", make_shard(tmp_path / "test.h5", 42, 1)
    words = ["--head", "yolo", "--side", "2", "--epochs", "15", "--lr", "0.05", "--keep", "last"]
    words += ["--init", str(weights["collage"]), "--teacher", str(weights["single"])]
    assert train("collage", shard, out, *words) == 0
    info = describe(str(out), "collage")
    assert info is not None
    assert info.head.name == "yolo"
    assert info.metadata["training"]["init_weights"] == "collage.safetensors"
    capsys.readouterr()
    words = ["evaluate", "--shards", str(test), "--single", str(weights["single"])]
    answers = tmp_path / "a.npz"
    words += ["--collage", str(out), "--calls", "1", "--json", "--save-answers", str(answers)]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["networks"]["collage"]["accuracy"] > 0.85

    predictor = load_predictor(str(out), "collage")
    scores = predictor.predict(np.zeros((2, *info.shape), np.uint8))
    assert scores.shape == (2, 4, 3)


def test_init_takes_the_trunk_and_refuses_another(
    weights: dict[str, Path], shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = ["--init", str(weights["collage"]), "--lr", "1e-9", "--epochs", "1"]
    assert train("collage", shard, tmp_path / "w", "--side", "3", *init) == 0
    info = describe(str(tmp_path / "w"), "collage")
    assert info is not None
    assert info.metadata["training"]["history"][0]["validation_accuracy"] > 0.8
    other = [*init, "--stages", "24x1/2"]
    assert train("collage", shard, tmp_path / "v", "--side", "3", *other) == 2
    assert "--stages" in capsys.readouterr().err


def test_pixels_of_one_grey_level_can_be_normalised() -> None:
    from collage_mpi.training.loop import pixel_statistics

    assert pixel_statistics(np.full((1, 2, 2, 1), 255, np.uint8)) == {"mean": [1.0], "std": [1e-3]}


def _results(row: dict[str, float]) -> dict[str, float]:
    """A record of an epoch without what the clock decides."""
    return {name: value for name, value in row.items() if name != "images_per_s"}


def _arguments(shard: Path, out: Path, *more: str) -> Any:
    from collage_mpi.commands.parser import read_command

    words = ["train", "single", "--shards", str(shard), "--out", str(out), *NET]
    _, args = read_command(
        [
            *words,
            "--epochs",
            "2",
            "--batch",
            "32",
            "--limit",
            "400",
            "--precision",
            "float32",
            *more,
        ]
    )
    return args


def _taught(teacher: str, *more: str) -> list[str]:
    return ["--side", "2", "--teacher", teacher, *more]


@pytest.mark.parametrize("own", [False, True])
def test_a_teacher_takes_the_place_of_labels(
    weights: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    own: bool,
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    images[::2] //= 8
    plain = tmp_path / "plain.h5"
    write_shard(plain, images, None, class_names=NAMES)
    assert train("collage", plain, tmp_path / "w", "--side", "2") == 4
    assert "--teacher NETWORK" in capsys.readouterr().err
    teacher = str(weights["single"])
    if own:
        file = tmp_path / "teacher.py"
        file.write_text(
            "import numpy as np\n"
            "class Teacher:\n"
            "    def predict(self, pixels):\n"
            "        bright = pixels.mean((1, 2, 3)) > 64\n"
            f"        return np.eye({len(NAMES)}, dtype=np.float32)[bright.astype(int)][:, None]\n"
            "def network(*args, **more):\n"
            "    return Teacher()\n"
        )
        teacher = f"{file}:network"
    assert train("collage", plain, tmp_path / "w", *_taught(teacher), "--epochs", "1") == 0
    said = capsys.readouterr().out
    assert "agreement with the teacher" in said
    info = describe(str(tmp_path / "w"), "collage")
    assert info is not None
    assert info.class_names == tuple(NAMES)


def test_a_training_by_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "single", "--shards", "a.h5", "--out", f"{tmp_path}/w.safetensors"]) == 2
    assert "training is one process" in capsys.readouterr().err
