"""Boxes by a detection network of torchvision, and MegaDetector's JSON of them.

    collage-mpi map boxes.py:Boxes --input photos/ --fit letterbox --image-px 640 --out runs/boxes
    python boxes.py runs/boxes photos/ boxes.json

`TwoSteps` also names the class of each box, by a second network that gets the box cut out of the
same pixels, in the same pass:

    collage-mpi map boxes.py:TwoSteps --input photos/ --fit letterbox --image-px 640 --out runs/two

The networks have the weights of the files that BOXES_WEIGHTS and CROPS_WEIGHTS name, which
torch.save wrote from a state dict. Without a file they have random weights of a fixed seed, to try
the two commands.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from collage_mpi.results import image_names, read_results

CATEGORIES = {"1": "animal", "2": "person", "3": "vehicle"}  # 0 is the background
SPECIES = {"0": "deer", "1": "fox", "2": "hare", "3": "other"}
LEAST = float(os.environ.get("LEAST_CONFIDENCE", "0.1"))  # of a box that is kept
CROP_PX = 224
ORIENTATION, QUARTER_TURN = 0x0112, 5  # of EXIF; from this value on width and height change places
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the weights of torchvision


def made(make: Any, weights: str, device: str, **settings: Any) -> Any:
    """A network with the weights of the file that an environment variable names."""
    import torch

    torch.manual_seed(0)  # each rank makes the same random weights
    network = make(weights=None, **settings)
    if file := os.environ.get(weights):
        network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return network.eval().to(device)


class Boxes:
    """Detects boxes: for each picture (k, 6) float32, each box its left, top, right and bottom edge
    in shares of the square picture, its confidence, and its category."""

    most_bytes = 4_096  # of the boxes of a picture; torchvision gives at most 100

    def __init__(self, device: str) -> None:
        from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as make

        self.device = device
        size = {"weights_backbone": None, "num_classes": 1 + len(CATEGORIES)}
        self.detect = made(make, "BOXES_WEIGHTS", device, **size, box_score_thresh=LEAST)

    def __call__(self, batch: np.ndarray) -> dict[str, Any]:
        """`batch`: (n, px, px, 3) uint8."""
        import torch

        pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            found = self.detect([*pixels])
        boxes = [
            torch.cat(
                [each["boxes"] / batch.shape[1], each["scores"][:, None], each["labels"][:, None]],
                dim=1,
            )
            for each in found
        ]
        return {
            "boxes": [each.float().cpu().numpy() for each in boxes],
            **self.further(pixels, boxes),
        }

    def further(self, pixels: Any, boxes: list[Any]) -> dict[str, Any]:
        """What else is said of the boxes of n pictures: (n, 3, px, px) float32 from 0 to 1."""
        return {}


class TwoSteps(Boxes):
    """Detects boxes, and classifies what is in each: `species` has (k, 2) float32 for each picture,
    the class and its probability."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        from torchvision.models import mobilenet_v3_small as make

        self.classify = made(make, "CROPS_WEIGHTS", device, num_classes=len(SPECIES))

    def further(self, pixels: Any, boxes: list[Any]) -> dict[str, Any]:
        """See `Boxes.further`."""
        import torch
        from torchvision.ops import roi_align

        edges = [each[:, :4] * pixels.shape[-1] for each in boxes]
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        with torch.inference_mode():  # all boxes of the batch in one call
            crops = (roi_align(pixels, edges, CROP_PX, aligned=True) - mean) / std
            scores, classes = self.classify(crops).softmax(1).max(1)
        found = torch.stack([classes.float(), scores], 1).cpu()
        return {"species": [each.numpy() for each in found.split([*map(len, boxes)])]}


def in_picture(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes in shares of a picture, as MegaDetector has them.

    Args:
        boxes: (k, 4), edges in shares of the square that the picture was put into (`--fit
            letterbox`).
        width, height: of the picture.

    Returns:
        (k, 4): left edge, top edge, width, height.
    """
    longest = max(width, height)
    size = np.array([width, height] * 2) / longest
    bars = np.array([(1 - width / longest) / 2, (1 - height / longest) / 2] * 2)
    edges = np.clip((boxes - bars) / size, 0, 1)
    return np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)


def megadetector(run: Path, photos: Path) -> dict[str, Any]:
    """The boxes of a run in the format of MegaDetector's batch output."""

    results = read_results(run)
    names = image_names(results).id
    images: list[dict[str, Any]] = []
    named: dict[str, Any] = {}
    for name, found in zip(names, results, strict=True):
        if not found["answered"]:
            images.append({"file": name, "detections": None, "failure": found["reason"]})
            continue
        with Image.open(photos / name) as picture:  # reads its header alone
            turned = picture.getexif().get(ORIENTATION, 1) >= QUARTER_TURN
            width, height = picture.size[::-1] if turned else picture.size
        boxes = found["boxes"]
        detections: list[dict[str, Any]] = [
            {
                "category": str(int(category)),
                "conf": round(float(confidence), 4),
                "bbox": [round(float(share), 4) for share in bbox],
            }
            for bbox, (confidence, category) in zip(
                in_picture(boxes[:, :4], width, height), boxes[:, 4:], strict=True
            )
        ]
        if "species" in found:
            named = {"classification_categories": SPECIES}
            for detection, (number, score) in zip(detections, found["species"], strict=True):
                detection["classifications"] = [[str(int(number)), round(float(score), 4)]]
        images.append({"file": name, "detections": detections})
    return {
        "info": {"format_version": "1.4", "detector": str(results.manifest["settings"]["single"])},
        "detection_categories": CATEGORIES,
        **named,
        "images": images,
    }


if __name__ == "__main__":
    RUN, PHOTOS, OUT = map(Path, sys.argv[1:])
    OUT.write_text(json.dumps(megadetector(RUN, PHOTOS), indent=1))
