"""The manifest of a run: what fixes its rows, and its jobs so far.

It is no file. `compose` makes it of the files of the ledger and of the jobs' entries, so that all
readers see one table of facts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from collage_mpi.errors import DataFault
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.ledger.records import LISTING, OPEN, OVER
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import jobs
from collage_mpi.results.parts import Ledger, read_ledger
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.files import reading
from collage_mpi.system.printable import readable, shown

COMPLETE = ("complete", "complete_with_errors")
STATUSES = (*COMPLETE, "incomplete")
DUE = "due"  # the listing of the input goes on, and all that is listed has its row

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


# Of a rank's answers: how many were compared with another rank's, and so on (`core.checks.Tally`).
COMPARED = ("compared", "differed", "wrong", "written")
_TEXTS = _dict_of(is_text)
_WORLD = list_of(
    fields(
        rank=_is_count,
        kinds=optional(list_of(is_text)),
        host=optional(is_text),
        **dict.fromkeys(("fingerprints", "tuning", "runtimes", "stayed"), optional(_TEXTS)),
        use=optional(fields(**dict.fromkeys(Use._fields, is_int))),
        checked=optional(fields(**dict.fromkeys(COMPARED, _is_count))),
        serials=optional(list_of(is_text)),
        unfit=optional(is_text),
    )
)
_POLL = fields(longest_gap_ns=optional(is_number))
_FINAL = fields(
    poll=optional(_POLL),
    batch=optional(_is_count),
    world=optional(_WORLD),
    lost=optional(list_of(_is_dict)),
    retired=optional(_TEXTS),
    refuted=optional(list_of(lambda v: list_of(_is_count)(v) and len(v) == 3)),
    seconds=optional(is_number),
    began_ns=optional(_is_count),
    ledger=optional(_dict_of(is_number)),
)
_SESSION = fields(
    session=lambda v: is_int(v) and 1 <= v < 65_535,  # a u2 column
    status=is_text,
    rows=optional(fields(images=_is_count, tasks=_is_count)),
    final=optional(_FINAL),
)
_THRESHOLD = fields(
    confidence=optional(is_number), proved=_is_count, drawn=_is_count, how=optional(is_text)
)
_SHARD = fields(
    path=optional(is_text),
    fingerprint=is_text,
    count=_is_count,
    content=optional(is_text),
)

_REQUIRED: dict[str, tuple[Check, str]] = {
    "run_id": (is_text, "a string"),
    "shards": (list_of(_SHARD), "a list of {path, fingerprint, count}"),
    "rows": (_is_count, "the number of images expected"),
}
_OPTIONAL: dict[str, tuple[Check, str]] = {
    "settings": (_is_dict, "an object"),
    "inputs": (_TEXTS, "an object of SHA-256"),
    "networks": (_TEXTS, "an object of SHA-256"),
    "order": (is_text, "file or shuffle:SEED, and whether it has only some images"),
    "permutation": (_is_count, "the version of the permutation of shuffle:SEED"),
    "limit": (_is_count, "a number of images"),
    "dropped": (_is_count, "a number of images that lost their rows"),
    "teams": (_is_count, "a number of teams"),
    "audit": (fields(share=is_number, seed=_is_count), "{share, seed} of audits"),
    "input_digest": (is_text, "a SHA-256"),
    "class_names": (list_of(is_text), "a list of names"),
    "beside": (_dict_of(list_of(is_text)), "lists of names, by network"),
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
    "listing": (is_text, f"{OPEN}, {DUE} or {OVER}"),
    "sessions": (list_of(_SESSION), "a list of sessions"),
    "bad_shards": (list_of(fields(path=is_text, reason=is_text)), "a list of {path, reason}"),
    "cost_ratio": (is_number, "a number"),
    "batch_costs": (_dict_of(is_number), "an object of numbers"),
    "thresholds": (list_of(_THRESHOLD), "a list of {confidence, proved, drawn}"),
    "poll": (_POLL, "an object with longest_gap_ns"),
    "lost": (list_of(_is_dict), "a list of lost ranks"),
    "extras": (fields(top_k=optional(_is_count), save=is_text), "{top_k, save}"),
}


def check_manifest(manifest: Json, where: str) -> Json:
    """Check the type of each key that is read from a manifest.

    Args:
        where: names the run in messages.

    Raises:
        DataFault: a key is missing or has a wrong type. The message names the first such key.
    """
    for key, (check, wanted) in {**_REQUIRED, **_OPTIONAL}.items():
        value = manifest.get(key)
        if not check(value) and (value is not None or key in _REQUIRED):
            raise DataFault(f"{where}: {key!r} must be {wanted}; found {shown(value)}.")
    return manifest


def compose(out: Path, ledger: Ledger | None = None) -> Json:
    """The manifest of the run in `out`, as its files say now.

    Args:
        out: the run's folder.
        ledger: what `read_ledger` found, if it was asked already.

    Raises:
        EnvironmentFault: there is no run in `out`, it cannot be read, or it is of another format.
        DataFault: a file is damaged.
    """
    ledger = ledger or read_ledger(out)
    store, found = FolderStore(out), Json()
    for run in ledger.runs:
        found |= run.settings
        networks = _linked(store, out, f"networks.{run.number}.json")
        found |= {} if networks is None else {"networks": networks}
    found |= {"sessions": jobs.entries(out), "thresholds": [], "status": ledger.status}
    while (held := _linked(store, out, threshold_name(len(found["thresholds"]) + 1))) is not None:
        found["thresholds"].append(held)
    found |= {LISTING: DUE} if ledger.due else {}
    check_manifest(found := readable(found), str(out))
    return check_manifest(found | _last_facts(found), str(out))


def threshold_name(number: int) -> str:
    """The file of a threshold of `--agree`, from number 1, below the run's folder."""
    return f"thresholds/{number}.json"


def _linked(store: FolderStore, out: Path, name: str) -> Any:
    """The JSON of a file that is made whole; None if there is none."""
    with reading(out / name):
        raw = store.read(name)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataFault(f"{out / name}: damaged ({error}). Restore it from a copy") from error


def _last_facts(manifest: Json) -> Json:
    """What the jobs said last: of those that ran at the same time what the first of them said, and
    the ranks of all of them."""
    told, launches = finals(manifest), launch_of(manifest)
    last = max((session for session, final in told.items() if final.get("world")), default=0)
    together = [n for n in told if n == last or launches.get(n, -n) == launches.get(last)]
    order = [n for n in told if n not in together] + together[::-1]
    found = {key: value for n in order for key, value in told[n].items()}
    first = {n: min((each["rank"] for each in told[n].get("world") or ()), default=0) for n in told}
    together.sort(key=lambda n: (first[n], n))  # teams by their numbers
    worlds = [{**each, "session": n} for n in together for each in told[n].get("world") or []]
    schemes = [manifest.get("scheme"), *(final.get("scheme") for final in told.values())]
    began = next((entry["job"] for entry in manifest["sessions"] if entry.get("job")), None)
    return {
        **found,
        **({"job": began} if began else {}),
        **({"world": worlds} if last else {}),
        "scheme": " then ".join(dict.fromkeys(filter(None, schemes))) or None,
    }


def resume_command(manifest: Mapping[str, Any], out: Path, flag: str = "") -> str:
    """The command that continues the run in `out` on as many ranks as it had."""
    ranks = _ranks(manifest) or "RANKS"
    shared = " --shared-out on" if recorded_settings(manifest).get("shared_out") == "on" else ""
    words = ["collage-mpi launch -n", str(ranks), "-- run", flag, "--out", shlex.quote(str(out))]
    return " ".join(filter(None, words)) + shared


def _ranks(manifest: Mapping[str, Any]) -> int:
    """The number of ranks of the last world that is known; 0 if none is. All teams of a world have
    as many ranks as that of the last job."""
    worlds = [final["world"] for final in finals(manifest).values() if final.get("world")]
    worlds = worlds or [manifest.get("world") or []]
    return len(worlds[-1]) * int(recorded_settings(manifest).get("teams") or 1)


def finals(manifest: Mapping[str, Any]) -> dict[int, Json]:
    """Session -> the facts that its job recorded, the last ones at its end."""
    entries = manifest.get("sessions") or []
    return {entry["session"]: entry.get("final") or {} for entry in entries}


def began_ns(manifest: Mapping[str, Any]) -> dict[int, int]:
    """Session -> the Unix time, in ns, at which its clock began, if it recorded one."""
    began = {session: final.get("began_ns") for session, final in finals(manifest).items()}
    return {session: at_ns for session, at_ns in began.items() if at_ns is not None}


def launch_of(manifest: Mapping[str, Any]) -> dict[int, int]:
    """Session -> the first one of the sessions that ran at the same time. A session that ran alone
    is not listed, nor are those of one process, which follow each other. Of a session that was
    killed only its beginning is known."""
    told, found = finals(manifest), dict[int, int]()
    jobs = {entry["session"]: entry.get("job") or {} for entry in manifest.get("sessions") or ()}
    process = {n: (job.get("host"), job.get("pid")) for n, job in jobs.items() if job.get("pid")}
    together, end_ns = set[int](), -1
    for session, at_ns in [*sorted(began_ns(manifest).items(), key=lambda each: each[1])]:
        mine = process.get(session, ())
        if at_ns > end_ns or mine in [process.get(each) for each in together]:
            together, end_ns = set(), -1
        together.add(session)
        end_ns = max(end_ns, at_ns + int(1e9 * (told[session].get("seconds") or 0)))
        found |= dict.fromkeys(together if len(together) > 1 else (), min(together))
    return found


def clock_offsets_ns(manifest: Mapping[str, Any], session: int) -> dict[int, int]:
    """The session and those that ran at the same time -> ns by which each clock began later than
    the session's."""
    launches, began = launch_of(manifest), began_ns(manifest)
    together = [each for each in launches if launches[each] == launches.get(session)] or [session]
    return {each: began.get(each, 0) - began.get(session, 0) for each in together}


def about_answers(manifest: Mapping[str, Any]) -> Json:
    """What the metadata of a table of answers says, so that it tells without the run which networks
    wrote it: digests of networks and of files, and the reference, which is the network that all
    others stand for, with all formats, devices, versions and processors that its jobs had.
    """
    settings, told = recorded_settings(manifest), finals(manifest).values()
    asked = [SINGLE, COLLAGE, "first", *(["agree", "top_k"] if settings.get("agree") else [])]
    ranks = [rank for final in told for rank in final.get("world") or () if SINGLE in rank["kinds"]]
    how = [{**(rank.get("tuning") or {}), **(rank.get("runtimes") or {})} for rank in ranks]
    jobs = [entry.get("job") or {} for entry in manifest.get("sessions") or ()]
    versions = [pair for job in jobs for pair in (job.get("versions") or {}).items()]
    found = {name: manifest.get(name) or {} for name in ("inputs", "networks")}
    return {
        "run_id": manifest["run_id"],
        **found,
        "settings": {name: settings[name] for name in asked if settings.get(name)},
        "reference": {
            "network": settings.get(SINGLE),
            "digest": found["networks"].get(SINGLE),
            "weights": found["inputs"].get(SINGLE),
            "formats": sorted({each[SINGLE] for each in how if SINGLE in each}),
            "devices": sorted({device for rank in ranks for device in rank.get("devices") or ()}),
            "versions": {
                n: [*dict.fromkeys(v for m, v in versions if m == n)] for n, _ in versions
            },
            "processors": sorted({job["processor"] for job in jobs if job.get("processor")}),
        },
    }


def recorded_settings(manifest: Mapping[str, Any]) -> Json:
    """The settings that a run recorded; {} if it recorded none."""
    settings = dict(manifest.get("settings") or {})
    settings.pop("decoder", None)  # which had one value, and is gone
    return settings


def class_name(names: Sequence[str], number: int) -> str | None:
    """The name of a class; None if it has none."""
    return names[number] if 0 <= number < len(names) else None
