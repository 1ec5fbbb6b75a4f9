"""What `auto` means, what is refused, what a GPU that is too small is told as."""

from __future__ import annotations

from dataclasses import replace

import pytest
from job_messages import HELLO

from collage_mpi.errors import UsageError
from collage_mpi.job.handshake import tell_tunings, warn_of_mixed_tuning
from collage_mpi.models.info import PLAIN, memory_fault
from collage_mpi.settings.run_settings import RunSettings


@pytest.mark.parametrize(
    ("asked", "device", "shown"),
    [
        ({}, "cuda", "float32, channels-last"),
        ({}, "cpu", "float32, channels-last"),
        ({"runtime": "compile"}, "cuda", "float32, channels-last, compile"),
        ({"runtime": "compile", "precision": "bfloat16"}, "cpu", "bfloat16, channels-last"),
    ],
)
def test_auto_is_float32_and_only_a_gpu_compiles_at_once(
    asked: dict[str, str], device: str, shown: str
) -> None:
    assert str(RunSettings(**asked).tuning().on(device)) == shown


def test_what_cannot_be_is_refused() -> None:
    for runtime in ("openvino", "onnx"):
        with pytest.raises(UsageError, match=f"--runtime {runtime} runs on CPUs"):
            replace(PLAIN, runtime=runtime).on("cuda")
    with pytest.raises(UsageError, match="precision is 'half'; known are: auto"):
        replace(PLAIN, precision="half")
    with pytest.raises(UsageError, match="runtime"):
        RunSettings(runtime="jit")


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


def test_a_number_format_that_no_other_line_says_is_said_before_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    null = replace(HELLO, tuning={"collage": "null"})
    tell_tunings({1: HELLO, 2: null})
    assert caplog.messages == ["number format: single network float32, channels-last"]
    tell_tunings({2: null})  # which computes nothing
    tell_tunings({1: HELLO}, {"single"})
    assert len(caplog.messages) == 1
