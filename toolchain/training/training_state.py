"""What a training carries from step to step: optimizer, running average, best weights, history, and their checkpoint."""

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
    """What one epoch came to."""

    epoch: int
    loss: float
    accuracy: float  # on validation
    balanced: float  # the same with every class counting the same


@dataclass(frozen=True, order=True)
class Score:
    """Better is greater: by accuracy, balanced accuracy or what lies between; equals, common on small sets, by cross-entropy."""

    aim: float
    tie_break: float  # minus the cross-entropy
    accuracy: float = field(compare=False)
    balanced: float = field(compare=False)


WORST_SCORE = Score(-1.0, -math.inf, -1.0, -1.0)


def group_by_block(model: nn.Module, decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters by block, each with its share of the learning rate: `decay` to the power of its distance to the last.

    A block is a top-level module, or an entry of a top-level sequence, in the order of definition. Layer-wise learning
    rates: Howard and Ruder, arXiv 1801.06146.
    """
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        first, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        blocks.setdefault(f"{first}.{inner}" if inner.isdigit() else first, []).append(parameter)
    last = len(blocks) - 1
    return [(block, decay ** (last - index)) for index, block in enumerate(blocks.values())]


class TrainingState:
    """All that a continued run needs, as tensors and a few numbers: no pickle."""

    def __init__(self, model: nn.Module, spec: TrainSpec, steps: int, checkpoint: Path) -> None:
        self.model, self.spec, self.checkpoint = model, spec, checkpoint
        self.total_steps = steps  # of the whole training
        even = [(list(model.parameters()), 1.0)]
        groups = []
        for block, share in even if spec.layer_decay == 1 else group_by_block(model, spec.layer_decay):
            kernels = [p for p in block if p.ndim > 1]
            others = [p for p in block if p.ndim <= 1]  # biases and norms are not decayed
            for parameters, decay in ((kernels, spec.weight_decay), (others, 0.0)):
                groups.append({"params": parameters, "weight_decay": decay, "share": share})
        self.optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate)
        self.averaged_model = copy.deepcopy(model) if spec.average else None
        self.epoch = self.step = 0
        self.history: list[EpochMetrics] = []
        self.best_weights: Mapping[str, Tensor] | None = None
        self.best_epoch, self.best_score = -1, WORST_SCORE

    def finish_step(self, model: nn.Module) -> None:
        """Counts a step and moves the running average."""
        self.step += 1
        if self.averaged_model is None:
            return
        decay = min(self.spec.average, self.step / (self.step + 10))
        now, done = model.state_dict(), set[int]()
        with torch.no_grad():
            # by name: the copy of an exported graph lists its tensors in another order; and once each: it shares some
            for name, mean in self.averaged_model.state_dict().items():
                if mean.data_ptr() not in done:
                    done.add(mean.data_ptr())
                    mean.lerp_(now[name], 1 - decay) if mean.is_floating_point() else mean.copy_(now[name])

    def keep_best(self, epoch: int, found: Score, model: nn.Module, *, latest: bool = False) -> None:
        """Keeps the weights when they are the best so far, or because they are the latest."""
        if latest or found > self.best_score:
            self.best_epoch, self.best_score = epoch, found
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def is_out_of_patience(self) -> bool:
        return 0 < self.spec.patience <= self.epoch - 1 - self.best_epoch

    def save(self) -> None:
        """Writes everything in one file, atomically."""
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
        clean = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        with files.open_atomic(self.checkpoint) as out:
            out.write(save(clean, metadata={"state": json.dumps(numbers)}))

    def resume(self) -> None:
        """Takes up where a cut run stopped, if it did."""
        if not self.checkpoint.exists():
            return
        with safetensors.safe_open(str(self.checkpoint), "pt") as file:
            numbers = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        if self.averaged_model is not None:
            self.averaged_model.load_state_dict(part("average."))
        self.best_weights = part("best.") or None
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, _, key = name.partition(".")
            slots.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.step = numbers["epoch"], numbers["step"]
        self.best_epoch, self.best_score = numbers["best_epoch"], Score(**numbers["best"])
        self.history = [EpochMetrics(**entry) for entry in numbers["history"]]
