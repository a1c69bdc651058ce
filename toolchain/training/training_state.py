"""The state of a training run between steps: optimizer, averaged weights, best weights and history, with its checkpoint.

A run that was killed resumes from the checkpoint of its last finished epoch: a safetensors file whose header holds the
numbers as JSON, so that nothing is unpickled.
"""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from toolchain.config.recipe import TrainSpec
from toolchain.core import files


@dataclass(frozen=True)
class EpochMetrics:
    """Training loss and validation accuracy of one epoch."""

    epoch: int  # from 1
    loss: float  # mean over the training steps
    accuracy: float  # on validation, 0..1
    balanced: float  # on validation, mean of the per-class accuracies, 0..1


@dataclass(frozen=True, order=True)
class Score:
    """Quality on a split; greater is better.

    Scores are ordered by `aim`: accuracy, balanced accuracy or a mix of both. Ties, which are common on small datasets,
    are broken by cross-entropy.
    """

    aim: float
    tie_break: float  # negative cross-entropy
    accuracy: float = field(compare=False)
    balanced: float = field(compare=False)


WORST_SCORE = Score(-1.0, -math.inf, -1.0, -1.0)


def group_by_block(model: nn.Module, decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """Return the parameters of each block with the block's factor on the learning rate.

    A block is a top-level module, or an entry of a top-level sequence, in the order of definition. The last block has
    factor 1, and each earlier one `decay` times the factor of the next.

    Source: layer-wise learning rates, Howard and Ruder, arXiv 1801.06146.
    """
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        top, _, rest = name.partition(".")
        child = rest.partition(".")[0]
        blocks.setdefault(f"{top}.{child}" if child.isdigit() else top, []).append(parameter)
    last = len(blocks) - 1
    return [(block, decay ** (last - index)) for index, block in enumerate(blocks.values())]


class TrainingState:
    """Everything that a resumed run needs, as tensors and a few numbers."""

    def __init__(self, model: nn.Module, spec: TrainSpec, steps: int, checkpoint: Path) -> None:
        """Start at epoch 0; `steps` is the length of the whole training, `checkpoint` the file to save to."""
        self.model, self.spec, self.checkpoint = model, spec, checkpoint
        self.total_steps = steps
        one_block = [(list(model.parameters()), 1.0)]
        groups = []
        for block, share in one_block if spec.layer_decay == 1 else group_by_block(model, spec.layer_decay):
            kernels = [p for p in block if p.ndim > 1]
            biases_and_norms = [p for p in block if p.ndim <= 1]  # no weight decay on these
            for parameters, decay in ((kernels, spec.weight_decay), (biases_and_norms, 0.0)):
                groups.append({"params": parameters, "weight_decay": decay, "share": share})
        self.optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate)
        self.averaged_model = copy.deepcopy(model) if spec.average else None
        self.epoch = self.step = 0
        self.history: list[EpochMetrics] = []
        self.best_weights: Mapping[str, Tensor] | None = None
        self.best_epoch, self.best_score = -1, WORST_SCORE

    def finish_step(self, model: nn.Module) -> None:
        """Count a step and update the running average of the weights."""
        self.step += 1
        if self.averaged_model is None:
            return
        decay = min(self.spec.average, self.step / (self.step + 10))
        weights, updated = model.state_dict(), set[int]()
        with torch.no_grad():
            # Match tensors by name, because the copy of an exported graph lists them in another order. Update each
            # storage once, because such a copy shares some of them.
            for name, average in self.averaged_model.state_dict().items():
                if average.data_ptr() not in updated:
                    updated.add(average.data_ptr())
                    if average.is_floating_point():
                        average.lerp_(weights[name], 1 - decay)
                    else:
                        average.copy_(weights[name])

    def keep_best(self, epoch: int, score: Score, model: nn.Module, *, latest: bool = False) -> None:
        """Keep a copy of the weights if they are the best so far; with `latest`, keep them whatever their score."""
        if latest or score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def is_out_of_patience(self) -> bool:
        """Return whether the last `patience` epochs brought no better score; never with a patience of 0."""
        return 0 < self.spec.patience <= self.epoch - 1 - self.best_epoch

    def save(self) -> None:
        """Write the checkpoint, one file, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= (
            {f"average.{k}": v for k, v in self.averaged_model.state_dict().items()} if self.averaged_model else {}
        )
        tensors |= {f"best.{k}": v for k, v in (self.best_weights or {}).items()}
        for index, slot in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        numbers = {
            "epoch": self.epoch, "step": self.step, "best_epoch": self.best_epoch, "best": files.to_jsonable(self.best_score),
            "history": files.to_jsonable(self.history),
        }  # fmt: skip
        contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        with files.open_atomic(self.checkpoint) as out:
            out.write(save(contiguous, metadata={"state": json.dumps(numbers)}))

    def resume(self) -> None:
        """Load the checkpoint of an interrupted run, if there is one."""
        if not self.checkpoint.exists():
            return
        with safetensors.safe_open(str(self.checkpoint), "pt") as file:
            numbers = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict

        def select(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(select("model."))
        if self.averaged_model is not None:
            self.averaged_model.load_state_dict(select("average."))
        self.best_weights = select("best.") or None
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in select("optimizer.").items():
            index, _, key = name.partition(".")
            slots.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.step = numbers["epoch"], numbers["step"]
        self.best_epoch, self.best_score = numbers["best_epoch"], Score(**numbers["best"])
        self.history = [EpochMetrics(**entry) for entry in numbers["history"]]
