"""A network with weights, ready to answer on the CPU or a GPU.

Owns: building from a weights file, pixel normalisation, device and thread choice.
Does not know: MPI, ranks, who asks, how weights were trained.
"""

from __future__ import annotations

import numpy as np
import torch

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.models.architecture import Architecture
from collage_mpi.models.collage_net import build_network
from collage_mpi.models.info import NetworkInfo
from collage_mpi.models.reading import reading_of
from collage_mpi.models.resnet import channels_last, fold_norms
from collage_mpi.models.weights import describe_weights, read_tensors


class TorchPredictor:
    """Answers batches of uint8 images; see the `Predictor` protocol.

    Batch norms are folded and weights laid out channels-last, which on one core takes the
    shipped single network from 4.7 to 3.4 ms a call and the collage from 5.1 to 4.6 ms.
    """

    def __init__(self, info: NetworkInfo, network: torch.nn.Module, device: torch.device) -> None:
        self.info = info
        self.kind = info.kind
        self.cells = info.cells
        self.classes = len(info.class_names)
        self.fingerprint = info.fingerprint
        self.device = str(device)
        self._device = device
        fold_norms(network)
        self.network = channels_last(network.to(device))
        values = info.metadata["normalisation"]
        shape = (1, info.shape[2], 1, 1)
        mean = torch.tensor(values["mean"], dtype=torch.float32).reshape(shape)
        std = torch.tensor(values["std"], dtype=torch.float32).reshape(shape)
        self._scale = (1.0 / (255.0 * std)).to(device)  # mean and std are those of pixels / 255
        self._shift = (-mean / std).to(device)
        self.reading = reading_of(info.head, info.side)
        self.temperature = float(info.metadata["temperature"])

    @classmethod
    def load(cls, spec: str, kind: str, *, device: str = "cpu", threads: int = 1) -> TorchPredictor:
        """Read a weights file and place the network; see `models.load_predictor`."""
        info = describe_weights(spec, kind)
        tensors = read_tensors(info)
        torch.set_num_threads(max(1, threads))
        architecture = Architecture.from_dict(info.architecture)
        with torch.device("meta"):
            network = build_network(
                architecture, info.shape[2], len(info.class_names), info.side, info.head
            )
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        # counters of the batch norms play no part in inference and are not stored
        for name in network.state_dict():
            if name.endswith("num_batches_tracked"):
                state[name] = torch.zeros((), dtype=torch.int64)
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise DataFault(
                f"weights {spec} do not fit their own architecture: {detail}"
            ) from error
        return cls(info, network, usable_device(device))

    @torch.inference_mode()
    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Classify: (n, H, W, C) uint8 -> (n, cells, classes) float32 probabilities.

        A row of zeros is a cell for which the network has no answer (`decode` gives None).

        Raises:
            DataFault: the batch has another shape or dtype than the network was made for.
        """
        return self.reading.scores(self.outputs(batch), self.temperature)

    @torch.inference_mode()
    def outputs(self, batch: np.ndarray) -> torch.Tensor:
        """(n, H, W, C) uint8 -> what the network gives, on the device; `reading` reads it."""
        if batch.ndim != 4 or batch.shape[1:] != self.info.shape or batch.dtype != np.uint8:
            raise DataFault(
                f"the {self.kind} network of {self.info.path} takes (n, "
                f"{', '.join(map(str, self.info.shape))}) uint8; it got {batch.shape} {batch.dtype}"
            )
        if not batch.flags.writeable:  # torch warns about read-only buffers, though it only reads
            batch = batch.copy()
        pixels = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2)  # (n, C, H, W) uint8
        return self.network(torch.addcmul(self._shift, pixels.float(), self._scale))


def usable_device(device: str) -> torch.device:
    """The device, if it is there. Raises EnvironmentFault with what is."""
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        count = torch.cuda.device_count()
        raise EnvironmentFault(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); this process sees "
            f"cpu and {count} CUDA device(s): check --device and CUDA_VISIBLE_DEVICES"
        ) from error
    return chosen
