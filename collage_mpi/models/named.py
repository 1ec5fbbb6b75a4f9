"""Parses the specs of networks of other libraries and of the user, without importing a library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from collage_mpi.errors import EnvironmentFault, UsageError

# Endings of networks' files that nothing here reads.
FOREIGN_ENDINGS = (".h5", ".keras", ".pb", ".tflite", ".engine", ".plan", ".mlmodel", ".gguf")
STATES = (".bin", ".ckpt", ".npz", ".pkl", ".tar")  # endings of checkpoints
OFFLINE = "HF_HUB_OFFLINE"  # if it is 1, libraries read only their cache
HOW = "docs/networks.md (A network of your own) has an example"
LIST = "docs/networks.md (Networks by name) lists what a network may be"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Name -> mean and std of pixels / 255, for files that do not declare them.
NORMS = {"imagenet": IMAGENET, "half": ((0.5,), (0.5,)), "none": ((0.0,), (1.0,))}

FUNCTION = "function"  # MODULE:FUNCTION, a network of the user's code
BESIDE = "beside"  # beside:NAME=SPEC;NAME=SPEC, several networks that answer the same pictures
MAP = "map:"  # before the MODULE:CLASS that is mapped beside a network
NAME_LENGTH = 32  # of a network beside others
NAME_TEXT = re.compile(rf"[A-Za-z]\w{{0,{NAME_LENGTH - 1}}}", re.ASCII)
PREFIXES = ("timm", "hf")
ENDINGS = {
    ".onnx": "onnx",
    ".pt2": "exported",
    **dict.fromkeys((".ts", ".torchscript", ".pt", ".pth"), "scripted"),
}
PACKAGES = {"timm": "timm", "hf": "transformers", "onnx": "onnxruntime"}
SLOW = {"timm": "timm", "hf": "transformers.models.auto"}  # modules whose import takes seconds
ANY = "any"  # in place of a digest
HEX_DIGITS = 64  # of a SHA-256
# Other libraries have the option norm.
OPTIONS = {"timm": ("weights", "norm", "embed"), "hf": ("norm", "embed", "labels"), FUNCTION: ()}
LENGTHS = ("l2", "none")  # of an embedding: 1 (divided by its Euclidean length), or as it is
CHOICES = {"norm": (*NORMS,), "embed": LENGTHS}  # values of options
BETWEEN = "|"  # labels


class NotInCache(EnvironmentFault):
    """The library's cache lacks the network, and the hub was not asked or did not answer."""


@dataclass(frozen=True)
class Named:
    """A parsed spec of a network.

    Attributes:
        spec: the user's text.
        library: one of PREFIXES, a value of ENDINGS, or FUNCTION.
        name: the name in the library, the path of the file, or MODULE:FUNCTION.
        options: pairs of `,key=value`.
    """

    spec: str
    library: str
    name: str
    options: tuple[tuple[str, str], ...] = ()

    def option(self, key: str) -> str | None:
        """The value of an option; None if the spec does not have it."""
        return dict(self.options).get(key)

    @property
    def norm(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std of the option norm; None if the spec does not have it."""
        norm = self.option("norm")
        return None if norm is None else NORMS[norm]


@dataclass(frozen=True)
class Part:
    """A network of several that answer the same pictures.

    Attributes:
        name: begins the names of its columns, unless it is the first one; "" if it is alone.
        spec: of the network.
        maps: whether it is a class of the user that is mapped, or gives its embedding.
    """

    name: str
    spec: str
    maps: bool = False


def parts_of(spec: str) -> tuple[Part, ...]:
    """The networks of a spec: several of `beside:NAME=SPEC;NAME=SPEC`, or the only one.

    Raises:
        UsageError: a name is missing, no word, or there twice; or a network has none.
    """
    prefix, _, rest = spec.partition(":")
    if prefix != BESIDE:
        return (Part("", spec, bool(embeds(spec))),)
    found = []
    for each in rest.split(";"):
        name, _, own = each.partition("=")
        if not NAME_TEXT.fullmatch(name) or not own or own.startswith(f"{BESIDE}:"):
            raise UsageError(
                f"{spec}: {each!r} names no network; needed: NAME=NETWORK, with a name of at most "
                f"{NAME_LENGTH} letters, digits and _. Several have ; between them, such as "
                f"{BESIDE}:a=timm:resnet50;b=n.onnx"
            )
        maps = own.startswith(MAP) or bool(embeds(own))
        found.append(Part(name, own.removeprefix(MAP), maps))
    names = [part.name.lower() for part in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{spec}: two networks have the name {twice!r}; give each its own")
    return tuple(found)


def part_of(name: str, spec: str) -> Part:
    """A network by its name or "", as one of several is written. Raises as `parts_of`."""
    if name and not NAME_TEXT.fullmatch(name):
        raise UsageError(
            f"--as {name!r:.80}: needed is a name of at most {NAME_LENGTH} letters, digits and _, "
            "which begins with a letter"
        )
    if ";" in spec:
        raise UsageError(f"{spec}: one of several networks cannot have ; in what names it")
    (part,) = parts_of(f"{BESIDE}:{name or 'a'}={spec}")
    return replace(part, name=name)


def beside(parts: Iterable[Part]) -> str:
    """The spec of several networks; `parts_of` is the inverse."""
    told = (
        f"{each.name}={MAP * (each.maps and not embeds(each.spec))}{each.spec}" for each in parts
    )
    return f"{BESIDE}:{';'.join(told)}"


def read_spec(spec: str) -> Named | None:
    """Parse a spec. None for a weights file of this package and for a null network."""
    if spec.startswith(f"{BESIDE}:"):
        return Named(spec, BESIDE, spec)
    place, *options = spec.split(",")
    prefix, _, name = place.partition(":")
    pairs = tuple((key, value) for key, _, value in (each.partition("=") for each in options))
    if prefix in PREFIXES and name:
        return Named(spec, prefix, name, pairs)
    library = ENDINGS.get(Path(place).suffix.lower())
    if library is not None:
        return Named(spec, library, place, pairs)
    return Named(spec, FUNCTION, spec) if is_function(spec) else None


def libraries_of(specs: Iterable[str]) -> set[str]:
    """The modules of SLOW that these networks need."""
    found = filter(None, (read_spec(part.spec) for spec in specs for part in parts_of(spec)))
    return {SLOW[named.library] for named in found if named.library in SLOW}


def is_null(spec: str) -> bool:
    """Whether a network spec names the null network."""
    return spec == "null" or spec.startswith("null:")


def is_function(spec: str) -> bool:
    """Whether a network spec is MODULE:FUNCTION or FILE.py:FUNCTION, and not the name of a file."""
    if not re.fullmatch(r"(?:[\w.]+|.+\.py):[A-Za-z_]\w*", spec) or spec.startswith("null:"):
        return False
    prefixed = spec.partition(":")[0] in (*PREFIXES, BESIDE, "torchvision")
    return not prefixed and not Path(spec).exists()


def is_foreign(spec: str) -> bool:
    """Whether a network is from another library or from the user's code."""
    return read_spec(spec) is not None


def embeds(spec: str) -> str | None:
    """Which of LENGTHS the embedding has that a network gives in place of classes; None if it gives
    classes."""
    named = read_spec(spec)
    return None if named is None else named.option("embed")


def is_onnx(spec: str) -> bool:
    """Whether a network is an ONNX file, which onnxruntime runs."""
    named = read_spec(spec)
    return named is not None and named.library == "onnx"


def is_file(spec: str) -> bool:
    """Whether a network spec is only the path of a file."""
    named = read_spec(spec)
    return named is None or (named.library in ENDINGS.values() and named.name == spec)


def check_trust(trusted: str) -> None:
    """Raise UsageError unless the setting is empty, "any", or digests with commas between them."""
    for word in trusted.split(",") if trusted else ():
        if word != ANY and not re.fullmatch(rf"[0-9a-f]{{{HEX_DIGITS}}}", word):
            raise UsageError(
                f"trust_network is {word!r:.80}; needed: the SHA-256 of the file in {HEX_DIGITS} "
                f"hex digits, which the refusal of a network shows, or {ANY}"
            )


def advice_for(spec: str) -> str:
    """What to type in place of a text that names no network and no weights file."""
    path = Path(spec)
    ending, prefix = path.suffix.lower(), spec.partition(":")[0]
    if ending == ".py":
        return f"name the function in the file too, such as {spec}:network ({HOW})"
    if prefix == "torchvision":
        return f"give timm:{spec.partition(':')[2]}, or save the network as ONNX and give FILE.onnx"
    if path.is_dir():
        return (
            f"give hf:{spec} for a folder that transformers wrote, timm:local-dir:{spec} for one "
            "of timm"
        )
    if ending in STATES:
        return f"name the network that these weights belong to: timm:NAME,weights={spec}"
    if ending in FOREIGN_ENDINGS:
        return "save the network as ONNX and give FILE.onnx"
    if not path.exists() and ending != ".safetensors":
        if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
            return f"give hf:{spec} for a network of transformers, timm:hf-hub:{spec} for timm's"
        if re.fullmatch(r"[\w.-]+", spec):
            return f"give timm:{spec} for a network of timm; {LIST}"
    return f"{LIST}; collage-mpi train makes a weights file"
