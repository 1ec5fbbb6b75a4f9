"""Tries one thing that may crash or hang, in a process of its own, and prints a JSON object.

It imports torch, h5py or mpi4py, writes an HDF5 file, opens shards, or counts GPUs.

Usage: python -m collage_mpi.doctor.probe TASK [ARGUMENT]
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any


def probe_package(name: str) -> dict[str, Any]:
    """Import one package: its version, {} if it is missing, or the error."""
    module_name = {"pillow": "PIL"}.get(name, name.replace("-", "_"))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            return {}
        return _broken(name, error)
    except Exception as error:  # a broken package may raise anything
        return _broken(name, error)
    version = getattr(module, "__version__", None) or _installed(name) or "?"
    return {"version": str(version), **_DETAILS.get(name, lambda _: {})(module)}


def _broken(name: str, error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return {"version": _installed(name), "error": f"{type(error).__name__}: {lines[0]}"}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch(torch: Any) -> dict[str, Any]:
    cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
    build = f"cuda {cuda}" if cuda else f"rocm {hip}" if hip else "cpu"
    return {"build": build, "count": int(torch.cuda.device_count())}


def _mpi4py(mpi4py: Any) -> dict[str, Any]:
    mpi4py.rc.initialize = False
    try:
        from mpi4py import MPI
    except Exception as error:  # ImportError, RuntimeError: what is missing is in the text
        return {"library_error": (str(error).strip().splitlines() or [type(error).__name__])[-1]}
    vendor, numbers = MPI.get_vendor()
    return {
        "vendor": vendor,
        "library": f"{vendor} {'.'.join(map(str, numbers))}",
        "pmix": vendor == "Open MPI" or "pmix" in MPI.Get_library_version(),  # how it was built
    }


def _h5py(h5py: Any) -> dict[str, Any]:
    return {"version": f"{h5py.__version__} (HDF5 {h5py.version.hdf5_version})"}


_DETAILS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _torch,
    "mpi4py": _mpi4py,
    "h5py": _h5py,
}


def probe_rank(_: str) -> dict[str, Any]:
    """What a rank must know before it starts MPI: the MPI library, GPUs, and torch's build."""
    return {**probe_package("mpi4py"), "gpus": driver_count(), "torch_build": torch_build()}


def torch_build() -> str | None:
    """cpu, cuda or rocm, from torch's version file, because importing torch would take seconds."""
    for folder in sys.path:
        path = Path(folder or ".") / "torch" / "version.py"
        if path.is_file():
            values: dict[str, Any] = {}
            try:
                exec(path.read_text(), values)  # as `import torch` would
            except Exception:  # a broken torch counts as missing
                return None
            return "cuda" if values.get("cuda") else "rocm" if values.get("hip") else "cpu"
    return None


def driver_count() -> int | None:
    """GPUs that the driver (CUDA, else ROCm) shows this process; None without a driver."""
    for library, start, count in (
        ("libcuda.so.1", "cuInit", "cuDeviceGetCount"),
        ("libamdhip64.so", "hipInit", "hipGetDeviceCount"),
    ):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        number = ctypes.c_int(0)
        if getattr(driver, start)(0) == 0 and getattr(driver, count)(ctypes.byref(number)) == 0:
            return number.value
        return 0
    return None


def probe_hdf5(folder: str) -> dict[str, Any]:
    """Write and read an HDF5 file like a shard; {"error"} if that fails."""
    from collage_mpi.shards.hdf5 import FileToWrite, create_file, open_file

    path = Path(folder) / "plain.h5"
    with FileToWrite(str(path), "w+") as stream:
        with create_file(stream) as file:
            file["numbers"] = list(range(10))
        if stream.failure is not None:
            raise stream.failure
    with open_file(path) as file:
        if int(file["numbers"][9]) != 9:
            raise OSError("the file reads back with other values than were written")
    return {}


def probe_shards(paths: str) -> dict[str, Any]:
    """Open shards, given as a JSON list of files and folders: counts of files and images."""
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.source import ANY_ITEMS

    named = [Path(path) for path in json.loads(paths)]
    with ShardSet.open(named, read_as=ANY_ITEMS) as shards:
        return {"files": len(shards.infos), "images": len(shards)}


TASKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "package": probe_package,
    "rank": probe_rank,
    "hdf5": probe_hdf5,
    "shards": probe_shards,
}


def main() -> None:
    """Do one task."""
    task, argument = sys.argv[1], (sys.argv[2:] or [""])[0]
    try:
        answer = TASKS[task](argument)
    except Exception as error:  # any error is the answer
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    print("\n" + json.dumps(answer), flush=True)  # a library may have printed an incomplete line


if __name__ == "__main__":
    main()
