"""The manifest of a run: its settings, its sessions so far, and whether a new session may go on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.results import MANIFEST, MARKER
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.files import load_json, reading, write_atomic
from collage_mpi.system.printable import shown, storable

FORMAT = "collage-mpi run"
VERSION = 2
COMPLETE = ("complete", "complete_with_errors")
STATUSES = (*COMPLETE, "incomplete")

_LARGEST_BYTES = 64 << 20  # a world of 10,000 ranks is about 3 MB

# Facts that the first session measured or received from its ranks, and that later sessions keep.
KEPT_KEYS = ("networks", "cost_ratio", "batch_costs", "thresholds")
Json = dict[str, Any]


Check = Callable[[Any], bool]


def is_int(value: object) -> bool:
    """True for an integer that is not a bool and fits in 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def is_number(value: object) -> bool:
    """True for a finite number that is not a bool and whose magnitude is below 1e18."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def is_text(value: object) -> bool:
    """True for a string."""
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return is_int(value) and value >= 0


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def optional(check: Check) -> Check:
    """A check that also passes None, which stands for a missing key."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """A check that passes lists whose items all pass `check`."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def wrong_key(value: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    """The first key whose value does not pass its check; None if all pass."""
    return next((key for key, check in checks.items() if not check(value.get(key))), None)


def fields(**checks: Check) -> Check:
    """A check that passes dicts whose named keys pass. Other keys are allowed."""
    return lambda value: isinstance(value, dict) and wrong_key(value, checks) is None


_TEXTS = _dict_of(is_text)
_WORLD = list_of(
    fields(
        rank=_is_count,
        kinds=optional(list_of(is_text)),
        host=optional(is_text),
        **dict.fromkeys(("fingerprints", "tuning", "runtimes", "stayed"), optional(_TEXTS)),
        use=optional(fields(**dict.fromkeys(Use._fields, is_int))),
    )
)
_POLL = fields(longest_gap_ns=optional(is_number))
_FINAL = fields(
    poll=optional(_POLL),
    batch=optional(_is_count),
    world=optional(_WORLD),
    lost=optional(list_of(_is_dict)),
    retired=optional(_TEXTS),
    seconds=optional(is_number),
)
_SESSION = fields(
    session=_is_count,
    status=is_text,
    rows=optional(fields(images=_is_count, tasks=_is_count)),
    final=optional(_FINAL),
)
_THRESHOLD = fields(
    confidence=optional(is_number),
    session=_is_count,
    since_ns=_is_count,
    **dict.fromkeys(("images", "audited", "differing"), optional(_is_count)),
)
_RANGES = list_of(lambda v: list_of(_is_count)(v) and len(v) == 2)
_SHARD = fields(
    path=optional(is_text),
    fingerprint=is_text,
    count=_is_count,
    content=optional(is_text),
    changed=optional(_RANGES),  # [row, session], not a range
)

_REQUIRED: dict[str, tuple[Check, str]] = {
    "run_id": (is_text, "a string"),
    # a u2 column
    "session": (lambda v: is_int(v) and 1 <= v < 65_535, "a number of the session, from 1"),
    "shards": (list_of(_SHARD), "a list of {path, fingerprint, count}"),
    "rows": (_is_count, "the number of images expected"),
    "accepted": (_dict_of(_dict_of(_RANGES)), "session -> table -> [[first, last], ...] of parts"),
}
_OPTIONAL: dict[str, tuple[Check, str]] = {
    "settings": (_is_dict, "an object"),
    "inputs": (_TEXTS, "an object of SHA-256"),
    "networks": (_TEXTS, "an object of SHA-256"),
    "order": (is_text, "file or shuffle:SEED"),
    "permutation": (_is_count, "the version of the permutation of shuffle:SEED"),
    "limit": (_is_count, "a number of images"),
    "teams": (_is_count, "a number of teams"),
    "audit": (fields(share=is_number, seed=_is_count), "{share, seed} of audits"),
    "launches": (_RANGES, "[[first session, teams], ...] of launches of several teams"),
    "input_digest": (is_text, "a SHA-256"),
    "class_names": (list_of(is_text), "a list of names"),
    "scheme": (is_text, "a string"),
    "accept": (is_text, "a string"),
    "mode": (is_text, "a string"),
    "batch": (_is_count, "a number of groups"),
    "side": (_is_count, "an integer"),
    "straggler": (is_text, "one line of text"),
    "job": (fields(folder=optional(is_text)), "an object with the folder it ran in"),
    "world": (_WORLD, "a list of {rank, host, kinds, ...}"),
    "started": (is_text, "a time"),
    "warmup_groups": (_is_count, "a number of groups"),
    "status": (is_text, "a status"),
    "sessions": (list_of(_SESSION), "a list of sessions"),
    "bad_shards": (list_of(fields(path=is_text, reason=is_text)), "a list of {path, reason}"),
    "cost_ratio": (is_number, "a number"),
    "batch_costs": (_dict_of(is_number), "an object of numbers"),
    "thresholds": (list_of(_THRESHOLD), "a list of {confidence, session, since_ns, ...}"),
    "poll": (_POLL, "an object with longest_gap_ns"),
    "lost": (list_of(_is_dict), "a list of lost ranks"),
    "extras": (fields(top_k=optional(_is_count), save=is_text), "{top_k, save}"),
}


def check_manifest(manifest: object, where: str) -> Json:
    """Check the format and version of a manifest, and the type of each key that is read from it.

    Args:
        where: names the manifest in messages.

    Raises:
        DataFault: the manifest is not of this format, or a key is missing or has a wrong type. The
            message names the first such key.
    """
    if not isinstance(manifest, dict):
        raise DataFault(f"{where}: not a JSON object, so not the manifest of a run.")
    if manifest.get("format") != FORMAT:
        raise DataFault(
            f"{where}: format {shown(manifest.get('format'))} found, {FORMAT!r} needed."
        )
    if manifest.get("version") != VERSION:
        raise DataFault(
            f"{where}: version {shown(manifest.get('version'))} found, this collage-mpi reads "
            f"{VERSION}."
        )
    for key, (check, wanted) in {**_REQUIRED, **_OPTIONAL}.items():
        value = manifest.get(key)
        if not check(value) and (value is not None or key in _REQUIRED):
            raise DataFault(f"{where}: {key!r} must be {wanted}; found {shown(value)}.")
    return manifest


def read_manifest(out: Path) -> Json:
    """Read and check the manifest of the run in `out`.

    Raises:
        EnvironmentFault: there is no run in `out`, it cannot be read, or an earlier version began
            it (`older` reads such a run if it is finished).
        DataFault: the manifest is damaged.
    """
    found = load_manifest(out)
    if is_older(found):
        raise older_fault(out, found)
    return check_manifest(found, str(out / MANIFEST))


def is_older(manifest: object) -> TypeGuard[Json]:
    """Whether an earlier version wrote a manifest."""
    return (
        isinstance(manifest, dict)
        and manifest.get("format") == FORMAT
        and manifest.get("version") == 1
    )


def is_finished(out: Path, manifest: Json) -> bool:
    """Whether the run in `out` has its marker, and its manifest says that it is complete."""
    return manifest.get("status") in COMPLETE and (out / MARKER).exists()


def older_fault(out: Path, manifest: Json) -> EnvironmentFault:
    """The error to raise if a run of an earlier version cannot be gone on with."""
    if is_finished(out, manifest):
        return EnvironmentFault(
            f"{out}: an earlier version of collage_mpi began and finished this run. collage-mpi "
            "verify, export and report read it; for a new run choose another --out."
        )
    return EnvironmentFault(
        f"{out}: an earlier version of collage_mpi began this run (manifest version "
        f"{manifest['version']}; needed is {VERSION}). Finish it with the version that began it, "
        "or start anew with another --out."
    )


def load_manifest(out: Path) -> object:
    """The JSON of the manifest of the run in `out`, of any version, unchecked.

    Raises:
        EnvironmentFault: there is no run in `out`, or it cannot be read.
        DataFault: the manifest is no JSON.
    """
    path = out / MANIFEST
    with reading(path, "damaged, no JSON; restore it from a copy"):
        try:
            size_bytes = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EnvironmentFault(
                f"{out}: no run here ({MANIFEST} not found). Name a directory that "
                "`collage-mpi run --out DIR` made."
            ) from error
        if size_bytes > _LARGEST_BYTES:
            raise DataFault(f"{path}: {size_bytes} bytes, far too large for a manifest.")
        found: object = load_json(path)
        json.dumps(found, ensure_ascii=False).encode()  # raises for lone surrogates, unprintable
    return found


def write_manifest(
    out: Path, manifest: Mapping[str, Any], check: Callable[[], object] | None = None
) -> None:
    """Write the manifest atomically.

    Raises:
        OSError: writing failed; the former manifest is then unchanged.
        CollageError: of `check` (see `write_atomic`).
    """
    text = json.dumps(manifest, indent=1, default=plain)
    write_atomic(out / MANIFEST, (text.encode(), b"\n"), check=check)


def plain(value: object) -> object:
    """Converts numpy scalars, arrays and paths for JSON: the `default` of `json.dumps`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be written to JSON: {value!r}")


def readable(value: Any) -> Any:
    """JSON whose texts can be stored and printed (`storable`). A path may thereby change, so do not
    open it."""
    if isinstance(value, str):
        return value if value.isascii() else storable(value)
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {readable(key): readable(item) for key, item in value.items()}
    return value


def resume_command(manifest: Mapping[str, Any], out: Path, flag: str = "--resume") -> str:
    """The command that continues the run in `out` on as many ranks as it had."""
    ranks = _ranks(manifest) or "RANKS"
    shared = " --shared-out on" if recorded_settings(manifest).get("shared_out") == "on" else ""
    return f"collage-mpi launch -n {ranks} -- run {flag} --out {shlex.quote(str(out))}{shared}"


def _ranks(manifest: Mapping[str, Any]) -> int:
    """The number of ranks that the run had; 0 if it is not known.

    Some of several teams may never have started. All teams have the same size, so the size comes
    from the placement of the first team, such as "0 coordinator, 1-9 single, 10 collage".
    """
    teams = manifest.get("teams") or 1
    if teams == 1:
        return len(manifest.get("world") or ())
    ranks = re.findall(r"\b\d{1,6}\b", str(manifest.get("placement") or ""))
    return int(teams * (1 + max(map(int, ranks)))) if ranks else 0


def finals(manifest: Mapping[str, Any]) -> dict[int, Json]:
    """Session number -> the facts recorded at its end; {} for a session that was killed."""
    entries = manifest.get("sessions") or []
    return {entry["session"]: entry.get("final") or {} for entry in entries}


def recorded_settings(manifest: Mapping[str, Any]) -> Json:
    """The settings that a run recorded; {} if it recorded none."""
    return dict(manifest.get("settings") or {})
