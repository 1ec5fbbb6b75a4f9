"""What `auto` means where, what is refused, what a GPU that is too small is told as."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from job_messages import HELLO

from collage_mpi.errors import UsageError
from collage_mpi.job.handshake import tell_tunings, warn_of_mixed_tuning
from collage_mpi.models.tuning import PLAIN, Tuning, bfloat16_pays, memory_fault
from collage_mpi.settings.run_settings import RunSettings

AUTO = RunSettings().tuning()


@pytest.mark.parametrize(
    ("device", "half_pays", "shown"),
    [
        ("cuda", False, "float16, channels-last, cuda-graph"),
        ("cpu", True, "bfloat16, channels-last"),
        ("cpu", False, "float32, channels-last"),
    ],
)
def test_auto_is_decided_by_the_device(device: str, half_pays: bool, shown: str) -> None:
    chosen = AUTO.on(device, half_pays)
    assert str(chosen) == shown
    assert chosen.on(device, not half_pays) == chosen
    plain = Tuning(precision="float32", channels_last="off", compile="none")
    assert plain.on(device, half_pays) == plain


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        replace(PLAIN, compile="cuda-graph").on("cpu")
    with pytest.raises(UsageError, match="precision is 'half'; known are: auto"):
        replace(PLAIN, precision="half")
    with pytest.raises(UsageError, match="compile"):
        RunSettings(compile="jit")


@pytest.mark.parametrize(
    ("vendor", "flags", "pays"),
    [
        ("GenuineIntel", "fpu avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "fpu avx512_bf16", False),
        ("AuthenticAMD", "fpu avx512_bf16", True),
        ("AuthenticAMD", "fpu avx2", False),
    ],
)
def test_where_bfloat16_pays_is_read_from_the_processor(
    tmp_path: Path, vendor: str, flags: str, pays: bool
) -> None:
    info = tmp_path / "cpuinfo"
    core = f"processor : 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\n"
    info.write_text(core + core.replace(": 0", ": 1"))
    assert bfloat16_pays(info) == pays
    assert not bfloat16_pays(tmp_path / "none")


def test_a_gpu_that_is_too_small_is_told_with_what_would_fit() -> None:
    text = memory_fault("net", "cuda:1", 87 << 20, 60 << 20, 24 << 30)
    for part in ("cuda:1", "87 MiB", "60 of 24,576 MiB", "fewer ranks", "--precision float16"):
        assert part in text
    assert "not known" in memory_fault("net", "cuda:1", 1, None, None)


def test_ranks_that_run_a_network_in_two_ways_are_told(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_mixed_tuning({1: HELLO, 2: HELLO})
    assert caplog.messages == []
    other = replace(HELLO, tuning={"single": "bfloat16"})
    warn_of_mixed_tuning({1: HELLO, 2: other, 3: HELLO})
    assert "float32, channels-last on ranks 1, 3; bfloat16 on rank 2" in caplog.text


@pytest.mark.parametrize(
    ("settings", "how", "said"),
    [
        (
            {},
            "bfloat16, channels-last",
            "; chosen for speed by --precision auto, --precision",
        ),
        ({}, "float32, channels-last", ""),
        ({"precision": "bfloat16"}, "bfloat16, channels-last", ""),
        (
            {"save": "scores"},
            "float32, channels-last",
            "; --save scores computes in float32 unless",
        ),
    ],
)
def test_the_number_format_is_said_before_the_job(settings, how, said, caplog):
    caplog.set_level("INFO")
    plan = SimpleNamespace(settings=RunSettings(**settings))
    null = replace(HELLO, tuning={"collage": "null"})
    tell_tunings(plan, {1: replace(HELLO, tuning={"single": how}), 2: null})
    (line,) = caplog.messages
    assert line.startswith(f"number format: single network {how}{said}")
    assert line.endswith(how) or said
    tell_tunings(plan, {2: null})  # which computes nothing
    assert len(caplog.messages) == 1


def test_what_is_saved_is_computed_in_float32_unless_told_otherwise():
    for save in ("scores", "embeddings"):
        kept = RunSettings(save=save, scheme="none")
        assert kept.tuning() == replace(AUTO, precision="float32")
        assert replace(kept, precision="bfloat16").tuning().precision == "bfloat16"
    assert RunSettings(top_k=3).tuning() == AUTO
