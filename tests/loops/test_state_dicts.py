"""State dicts of other programs are read without running code of the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from collage_mpi.errors import CollageError
from collage_mpi.models.libraries import read_state

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code of a weights file was run')",))


def test_files_that_are_not_taken(tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(CollageError) as told:
            read_state(tmp_path / name)
        return str(told.value)

    torch.save({"state_dict": STATE, "hook": Evil()}, tmp_path / "evil.pth")
    assert "would run code of its maker" in refused("evil.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    assert "would run code" in refused("plain.pt")
    torch.save(STATE, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-200])
    assert "damaged" in refused("cut.pth")
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert "no safetensors file" in refused("x.safetensors")
    assert "cannot be read" in refused("absent.pth")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "log.pth")
    assert "its keys are epoch, loss" in refused("log.pth")


@pytest.mark.parametrize("form", ["safetensors", "checkpoint", "parallel"])
def test_forms_of_a_state_dict(tmp_path: Path, form: str) -> None:
    path = tmp_path / "f.pth"
    if form == "safetensors":
        path = tmp_path / "f.safetensors"
        save_file(STATE, path)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": STATE}, path)
    else:
        torch.save({f"module.{name}": tensor for name, tensor in STATE.items()}, path)
    found = read_state(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
