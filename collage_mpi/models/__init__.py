"""Describes and loads networks. Importing this package imports neither torch nor numpy.
`load_predictor` imports torch only if the network needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.kinds import SINGLE

if TYPE_CHECKING:
    from collage_mpi.models.info import Loading, NetworkInfo, Predictor


def describe(spec: str, kind: str, trusted: str = "") -> NetworkInfo | None:
    """Read the facts of a network from the header of its weights file, without torch.

    Args:
        spec: path of a safetensors file, "null" (see `null.parse_null`), or a network of another
            library or of the user (see `named`).
        kind: one of NETWORKS, the role of the network.
        trusted: which networks that are programs may run: the setting trust_network.

    Returns:
        The facts; None for a network without a weights file of this package, and for several.

    Raises:
        UsageError: the kind or an option is unknown, a null spec is malformed, the weights are of
            another kind, or the network is a program that the user does not trust.
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file does not hold weights of this package.
    """
    from collage_mpi.models.gate import admit
    from collage_mpi.models.info import check_kind
    from collage_mpi.models.named import is_null, parts_of, read_spec
    from collage_mpi.models.null import parse_null
    from collage_mpi.models.weights import describe_weights

    check_kind(kind)
    (part, *more) = parts_of(spec)
    if more:
        for each in (part, *more):
            describe(each.spec, kind, trusted)
        return None
    spec = part.spec
    if is_null(spec):
        parse_null(spec, kind)
        return None
    named = read_spec(spec)
    if named is not None:
        admit(named, trusted)
        return None
    return describe_weights(spec, kind)


def load_predictor(spec: str, kind: str, how: Loading | None = None) -> Predictor:
    """Load a network so that it can predict.

    Args:
        spec: path of a safetensors file, "null[:key=value,...]", or another network (see `named`).
        kind: one of NETWORKS.
        how: where and how the network runs; by default on one thread of the CPU, in float32.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `describe`; also if the device is missing or too
            small, tensors do not fit the architecture or are not finite, or the network has no
            embeddings and they are wanted.
    """
    from collage_mpi.models.info import Loading, check_kind
    from collage_mpi.models.named import BESIDE, is_foreign, is_null
    from collage_mpi.models.null import parse_null

    check_kind(kind)
    how = how or Loading()
    if how.names_columns and (is_null(spec) or kind != SINGLE):
        raise UsageError(
            f"--{kind} {spec}: this network gives no embeddings; --save embeddings is for single "
            "networks with weights, and for your own that give them"
        )
    if is_null(spec):
        return parse_null(spec, kind, how.geometry)
    if spec.startswith(f"{BESIDE}:"):
        from collage_mpi.models.beside import load_beside

        return load_beside(spec, kind, how)
    if is_foreign(spec):
        from collage_mpi.models.own import load_foreign

        return load_foreign(spec, kind, how)[0]
    from collage_mpi.models.predictor import TorchPredictor

    return TorchPredictor.load(spec, kind, how)
