"""Describes a network, and makes it ready to answer. Importing this package imports neither torch
nor numpy; `load_predictor` imports torch if the network has weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.kinds import PARITY, SINGLE

if TYPE_CHECKING:
    from collage_mpi.models.info import Loading, NetworkInfo, Predictor


def describe(spec: str, kind: str) -> NetworkInfo | None:
    """The facts of a network, from the header of its weights file; torch is not needed.

    Args:
        spec: path of a safetensors file, "null" (see `null.parse_null`), or a user's own
            network, MODULE:FUNCTION (see `own`).
        kind: one of NETWORKS, the role of the network.

    Returns:
        The facts, or None for a null network and a user's own network, which are told the
        shapes.

    Raises:
        UsageError: an unknown kind, a malformed null spec, or weights of the other kind.
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file does not hold weights of this package.
    """
    from collage_mpi.models.info import check_kind
    from collage_mpi.models.null import is_null, parse_null
    from collage_mpi.models.own import is_own
    from collage_mpi.models.weights import describe_weights

    check_kind(kind)
    if is_null(spec):
        parse_null(spec, kind)
        return None
    if is_own(spec):
        return None
    return describe_weights(spec, kind)


def load_predictor(spec: str, kind: str, how: Loading | None = None) -> Predictor:
    """Build the network and make it ready to predict.

    Args:
        spec: path of a safetensors file, "null[:key=value,...]", or MODULE:FUNCTION.
        kind: one of NETWORKS.
        how: where and how it runs; on one thread of the CPU, in float32, by default.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `describe`; also for a device that is
            missing or too small, tensors that do not fit the architecture or are not
            finite, or a network without embeddings if they are wanted.
    """
    from collage_mpi.models.info import Loading, check_kind
    from collage_mpi.models.null import is_null, parse_null
    from collage_mpi.models.own import is_own, load_own

    check_kind(kind)
    how = how or Loading()
    if how.embed and (is_null(spec) or kind != SINGLE):
        raise UsageError(
            f"--{kind} {spec}: this network gives no embeddings; --save embeddings is for single "
            "networks with weights, and for your own that give them"
        )
    if is_null(spec):
        return parse_null(spec, kind)
    if is_own(spec):
        if kind == PARITY:
            raise UsageError(f"{spec}: a parity network is trained, and so has weights; name them")
        if how.geometry is None:
            raise UsageError(f"{spec}: a network of your own cannot be used here; name weights")
        return load_own(spec, kind, how.geometry, how)
    from collage_mpi.models.predictor import TorchPredictor

    return TorchPredictor.load(spec, kind, how)
