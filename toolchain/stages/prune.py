"""prune: dense model, plan -> smaller model. The plan is data, replayed on the dense model; nothing is ranked here."""

from torch import nn

from toolchain import loop, surgery
from toolchain.stages.fit import Fit


def run(dense: loop.Trained, fit: Fit) -> nn.Module:
    """The dense model with the plan applied; the dense model is left as it was."""
    return surgery.apply(dense.model, fit.surgery)
