"""The register of schemes: what each needs and takes, and that one more is one class."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace

import pytest
from scheduler_harness import policy_of, scheme_settings

from collage_mpi.errors import UsageError
from collage_mpi.kinds import BACKUP, COLLAGE, KINDS, SINGLE
from collage_mpi.models.tuning import Tuning
from collage_mpi.scheduler import SchedulerSettings, SchemeSettings, make_scheme
from collage_mpi.scheduler.schemes import SCHEMES, Scheme, base, scheme_class
from collage_mpi.settings.redundancy import RankSettings
from collage_mpi.system.fields import setting

ASKED = scheme_settings(
    "none",
    assign="least",
    policy=policy_of("confident", confidence=0.5, deadline_ns=9_000_000),
    collage_copies=2,
    hedge_ns=5_000_000,
    placement="fixed",
)


def asked(name: str, **changes: object) -> SchemeSettings:
    return replace(ASKED, name=name, **changes)


def test_schemes_are_in_the_order_that_help_and_errors_list_them():
    listed = "none, cascade, cascade-batch, collage, collage-only, replicate, hedge"
    assert ", ".join(SCHEMES) == listed
    with pytest.raises(UsageError, match=f"known are: {listed}"):
        scheme_class("nine")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("none", {SINGLE}),
        ("replicate", {SINGLE}),
        ("hedge", {SINGLE}),
        ("collage", {SINGLE, COLLAGE}),
        ("collage-only", {COLLAGE}),
        ("cascade-batch", {SINGLE, BACKUP}),
    ],
)
def test_what_a_scheme_needs(name, needs):
    made = make_scheme(asked(name))
    assert (made.name, made.needs) == (name, needs)
    assert made.main in needs


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("none", "none, least loaded"),
        ("replicate", "replicate 2"),
        ("hedge", "hedge, least loaded after 5 ms"),
        ("collage", "collage, least loaded"),
        ("collage-only", "collage-only"),
    ],
)
def test_a_scheme_shows_the_settings_that_it_takes_and_no_others(name, label):
    assert make_scheme(asked(name)).label == label


def test_collages_alone_wait_for_nobody():
    """An accept policy would hold their cells back for singles that do not come."""
    assert make_scheme(asked("collage-only")).policy.name == "first"
    assert make_scheme(asked("collage")).policy.name == "confident 0.5, else 9 ms"


@pytest.mark.parametrize("name", SCHEMES)
def test_needs_and_takes_are_names_that_there_are(name):
    scheme = scheme_class(name)
    assert scheme.needs <= set(KINDS)
    assert scheme.takes <= {each.name for each in fields(SchemeSettings)} - {"name"}


@pytest.mark.parametrize("name", SCHEMES)
def test_only_who_makes_collages_places_them_by_speed(name):
    if COLLAGE in scheme_class(name).needs:
        made = make_scheme(asked(name, placement="fastest"))
        assert made.watches_health or made.assign == "pull"  # to the fastest that has room
    elif "placement" in scheme_class(name).takes:
        assert make_scheme(asked(name, placement="fastest")).assign == "pull"
    else:
        with pytest.raises(UsageError, match=f"scheme {name} makes none"):
            make_scheme(asked(name, placement="fastest"))


def test_hedging_needs_a_time():
    with pytest.raises(UsageError, match="scheme hedge needs a time: --hedge-ms 150"):
        make_scheme(asked("hedge", hedge_ns=None))


@pytest.mark.parametrize("settings", [SchemeSettings, Tuning])
def test_only_the_settings_of_a_run_have_defaults(settings):
    assert [each.name for each in fields(settings) if each.default is not MISSING] == []
    with pytest.raises(TypeError, match="positional"):
        settings("none")


def test_the_defaults_of_the_scheduler_are_of_what_no_setting_says():
    known = {each.name for each in fields(SchedulerSettings) if each.default is not MISSING}
    assert known == {"max_failures", "end_ns", "stop_ns", "park_ns", "settle_ns"}


@pytest.mark.parametrize("name", SCHEMES)
def test_who_assigns_by_finish_watches_the_ranks(name):
    """Beside collages that go where they are placed."""
    made = make_scheme(asked(name, assign="finish"))
    assert made.watches_health == ("finish" in scheme_class(name).assigns)


def test_one_more_scheme_is_one_class():
    @base.register
    class Spare(Scheme):
        """Singles, and collage ranks that do nothing."""

        name = "spare"
        needs = frozenset({SINGLE, COLLAGE})

    @dataclass(frozen=True, repr=False)
    class Spared(RankSettings):
        scheme: str = setting("spare", "one of those that were known when the class was made")

    try:
        assert make_scheme(asked("spare")).label == "spare, least loaded"
        found = Spared(collage_ranks=2, side=2).place(7)
        assert found.describe() == "0 coordinator, 1-4 single, 5-6 collage"
        with pytest.raises(AssertionError, match="two schemes spare"):
            base.register(Spare)
    finally:
        del base.REGISTERED["spare"]
