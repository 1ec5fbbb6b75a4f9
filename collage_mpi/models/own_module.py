"""Makes a predictor of a user's torch.nn.Module."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.info import HOW, TOLERANCE, Geometry, Loading, own_info
from collage_mpi.models.predictor import TorchPredictor, told_if_it_does_not_fit, usable_device
from collage_mpi.models.tuning import PLAIN, Tuning


def module_predictor(
    spec: str, kind: str, geometry: Geometry, module: nn.Module, how: Loading
) -> TorchPredictor:
    """The module as a predictor, called once to check that its answers fit.

    A precision or launching of "auto" means float32 without graphs here, because a module may make
    tensors of its own that do not follow another precision.

    Raises:
        UsageError: it gives no embeddings, and they are wanted.
        DataFault: its output has a wrong shape, or is probabilities already.
        EnvironmentFault: the device is missing, or the module fails in this precision.
    """
    torch.set_num_threads(max(1, how.threads))
    info = own_info(spec, kind, geometry, fingerprint_of(spec, module))
    shaped = _Shaped(spec, module, geometry.cells(kind), geometry.classes, how.embed)
    place, chosen = usable_device(how.device), _as_said(how.tuning or PLAIN)
    with told_if_it_does_not_fit(info, shaped, place, chosen):
        predictor = TorchPredictor(info, shaped, place, chosen, how.embed)
        if geometry.classes is None:
            predictor.outputs(info.noise())  # which tells how many there are
            info = own_info(spec, kind, replace(geometry, classes=shaped.classes), info.fingerprint)
            predictor = TorchPredictor(info, shaped, place, chosen, how.embed)
        predictor.first_call()
        _check_logits(spec, predictor.outputs(info.noise()))
    return predictor


def _check_logits(spec: str, outputs: Tensor) -> None:
    """Raise DataFault for outputs (n, cells, classes) of a softmax. A second softmax would leave
    hardly any difference between high and low scores.
    """
    if outputs.shape[2] == 1 or float(outputs.min()) < 0:
        return
    if bool(((outputs.sum(dim=2) - 1).abs() <= TOLERANCE).all()):
        raise DataFault(
            f"{spec}: the network gave probabilities (from 0 to 1, 1 in all); needed of a "
            f"torch.nn.Module: logits. Leave out its softmax. {HOW}"
        )


def _as_said(tuning: Tuning) -> Tuning:
    precision = "float32" if tuning.precision == "auto" else tuning.precision
    return replace(
        tuning, precision=precision, compile="none" if tuning.compile == "auto" else tuning.compile
    )


def fingerprint_of(spec: str, module: nn.Module) -> str:
    """SHA-256 over the module's spec and its state, 64 hex digits."""
    digest = hashlib.sha256(spec.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Shaped(nn.Module):
    def __init__(
        self, spec: str, module: nn.Module, cells: int, classes: int | None, embed: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.module, self.cells, self.classes = spec, module, cells, classes
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.module(x)
        logits, embedding = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        if not self.embed:
            return self._logits(logits, len(x))
        if not isinstance(embedding, Tensor) or embedding.dim() < 2 or len(embedding) != len(x):
            raise UsageError(
                f"{self.spec}: the network gives no embeddings, which --save embeddings needs: let "
                f"its forward return (logits, embeddings), the latter ({len(x)}, d). {HOW}"
            )
        return self._logits(logits, len(x)), embedding.flatten(1)

    def _logits(self, out: object, n: int) -> Tensor:
        cells, side = self.cells, round(self.cells**0.5)
        if self.classes is None and isinstance(out, Tensor) and out.dim() > 1:
            self.classes = out.shape[1 if out.dim() == 4 else -1]  # the first answer tells
        classes = self.classes
        if isinstance(out, Tensor):
            if out.shape == (n, cells, classes):
                return out
            if cells == 1 and out.shape == (n, classes):
                return out[:, None]
            if cells > 1 and out.shape == (n, classes, side, side):
                return out.flatten(2).transpose(1, 2)
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        form = f"({n}, {classes})" if cells == 1 else f"({n}, {classes}, {side}, {side})"
        raise DataFault(
            f"{self.spec}: the network gave {found}; needed: logits ({n}, {cells}, {classes}) or "
            f"{form}"
        )
