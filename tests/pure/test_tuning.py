"""What `auto` means where, what is refused, what a GPU that is too small is told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from collage_mpi.config import RunSettings
from collage_mpi.errors import UsageError
from collage_mpi.models.tuning import Tuning, has_amx, memory_fault
from collage_mpi.muster import warn_of_mixed_tuning

AUTO = RunSettings().tuning()


@pytest.mark.parametrize(
    ("device", "amx", "shown"),
    [
        ("cuda", False, "float16, channels-last, cuda-graph"),
        ("cpu", True, "bfloat16, channels-last"),
        ("cpu", False, "float32, channels-last"),
    ],
)
def test_auto_is_decided_by_the_device(device: str, amx: bool, shown: str) -> None:
    chosen = AUTO.on(device, amx)
    assert str(chosen) == shown
    assert chosen.on(device, not amx) == chosen
    plain = Tuning("float32", "off", "none")
    assert plain.on(device, amx) == plain


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        Tuning(compile="cuda-graph").on("cpu")
    with pytest.raises(UsageError, match="precision is 'half'; known are: auto"):
        Tuning("half")
    with pytest.raises(UsageError, match="compile"):
        RunSettings(compile="jit")


def test_amx_is_read_from_the_processors_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n")
    assert has_amx(info)
    info.write_text("processor : 0\nflags\t\t: fpu avx512_bf16\n")
    assert not has_amx(info)
    assert not has_amx(tmp_path / "none")


def test_a_gpu_that_is_too_small_is_told_with_what_would_fit() -> None:
    text = memory_fault("net", "cuda:1", 87 << 20, 60 << 20, 24 << 30)
    for part in ("cuda:1", "87 MiB", "60 of 24,576 MiB", "fewer ranks", "--precision float16"):
        assert part in text
    assert "not known" in memory_fault("net", "cuda:1", 1, None, None)


def test_ranks_that_run_a_network_in_two_ways_are_told(capsys: pytest.CaptureFixture) -> None:
    hello = {"tuning": {"single": "float32, channels-last"}}
    warn_of_mixed_tuning({1: hello, 2: hello})
    assert capsys.readouterr().err == ""
    warn_of_mixed_tuning({1: hello, 2: {"tuning": {"single": "bfloat16"}}, 3: hello})
    assert (
        "float32, channels-last on rank(s) 1, 3; bfloat16 on rank(s) 2" in capsys.readouterr().err
    )
