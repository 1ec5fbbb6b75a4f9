"""The rows of groups follow from those of the images."""

from __future__ import annotations

import numpy as np

from collage_mpi.results.reader import Groups, groups_of
from collage_mpi.rows import IMAGE_ROW


def images(count: int, side: int = 2) -> np.ndarray:
    rows = np.zeros(count, IMAGE_ROW)
    rows["group"], rows["cell"] = np.divmod(np.arange(count), side**2)
    rows["session"], rows["has_label"] = 1, True
    rows["label"], rows["latency_ns"] = rows["cell"] // 2, 7 + np.arange(count)
    return rows


def test_images_that_come_in_any_order_and_number_make_the_same_groups() -> None:
    rows, manifest = images(18), {"side": 2}
    whole = groups_of(rows, manifest)
    assert whole["images"].tolist() == [4, 4, 4, 4, 2]
    assert whole["classes"].tolist() == [2, 2, 2, 2, 1]
    mixed = rows[np.random.default_rng(0).permutation(len(rows))]
    groups = Groups(manifest)
    found = [*(groups.add(mixed[at : at + 3]) for at in range(0, 18, 3)), groups.rest()]
    assert (np.sort(np.concatenate(found), order="group") == whole).all()


def test_a_group_that_a_killed_session_did_not_end_is_left_out() -> None:
    rows = images(6)
    for entry, wanted in (
        ({"session": 1, "rows": None}, [4]),
        ({"session": 1, "rows": {}}, [4, 2]),
    ):
        found = groups_of(rows, {"side": 2, "sessions": [entry]})
        assert found["images"].tolist() == wanted


def test_no_images_are_no_groups() -> None:
    assert len(groups_of(np.empty(0, IMAGE_ROW), {"side": 3})) == 0
