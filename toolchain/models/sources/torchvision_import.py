"""Import torchvision where its compiled operators are missing.

The package registry's torchvision is a CUDA build. Beside a CPU build of torch its import fails on two operators that a
classifier never calls; declaring their signatures first lets everything else load (pytorch/vision #9077).
"""

import importlib
from types import ModuleType

import torch

MISSING_OPERATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a declaration lives as long as its library object


def import_torchvision() -> ModuleType:
    """Return the torchvision module; declare its missing operators first if the import fails on them."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as reason:
        if "torchvision::nms does not exist" not in str(reason) or _declared:
            raise
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for signature in MISSING_OPERATIONS:
        library.define(signature)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return importlib.import_module("torchvision")
