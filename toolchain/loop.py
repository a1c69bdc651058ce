"""The one training loop: used by adapt, recover and quantize, resumable after any epoch.

Every random choice of an epoch comes from (seed, epoch), so a run that was killed and continued ends with the
same weights as one that was not.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.fx import GraphModule

from toolchain import progress, records
from toolchain.data import Dataset, Images, batches
from toolchain.errors import ToolchainError
from toolchain.values import AugmentSpec, Preprocess, TrainSpec

CHECKPOINT = "training.safetensors"
WEIGHTS = "weights.safetensors"
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    loss: float
    accuracy: float  # on validation


@dataclass(frozen=True)
class Training:
    """A finished training."""

    history: tuple[Epoch, ...]
    best_epoch: int  # from 0; -1: the weights it started with
    best_accuracy: float  # on validation


Hook = Callable[[nn.Module, int, bool], None]  # model, epoch, whether training (or validating) is next


@dataclass(frozen=True)
class Job:
    """What to train with; the model itself is passed beside it."""

    data: Dataset
    spec: TrainSpec
    augment: AugmentSpec
    seed: int
    label: str
    folder: Path  # for the checkpoint
    teacher: nn.Module | None = None
    head: str = ""  # module that learns alone in the first `freeze_epochs`
    switch: Hook = lambda model, epoch, training: None  # called before training and before validating


@dataclass(frozen=True, order=True)
class Score:
    """Better is greater: first by accuracy; equal accuracies, common on small sets, by cross-entropy."""

    accuracy: float
    loss: float = field(compare=False)
    tie_break: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tie_break", -self.loss)


def set_mode(model: nn.Module, *, training: bool) -> nn.Module:
    """Training or inference form; an exported graph has only the form it was exported in."""
    return model if isinstance(model, GraphModule) else model.train(training)


def predict(model: nn.Module, images: Images, preprocess: Preprocess) -> Tensor:
    """Logits [images, classes] of a whole split, in order."""
    set_mode(model, training=False)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch, _ in batches(images, preprocess, EVALUATION_BATCH)])


def evaluate(model: nn.Module, images: Images, preprocess: Preprocess) -> Score:
    """How well a split is classified."""
    logits = predict(model, images, preprocess)
    right = (logits.argmax(1) == images.labels).float().mean().item()
    return Score(right, F.cross_entropy(logits, images.labels).item())


def train(model: nn.Module, job: Job, *, keep_start: bool = False) -> Training:
    """Trains `model` in place and leaves it with the weights of its best validated epoch.

    Continues from `job.folder` when an earlier run was cut. With `keep_start` the weights it begins with compete
    too, so that the result is never worse than them on validation.

    Raises:
        ToolchainError: the loss became NaN or infinite; the last good epoch stays in the folder.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub misses this form
    state = _State(model, job)
    state.resume()
    images, validation = job.data.splits["train"], job.data.splits["val"]
    if keep_start and state.epoch == 0 and state.best_weights is None:
        state.judge(-1, evaluate(model, validation, job.data.preprocess), model)
    weights = _class_weights(images.labels, len(job.data.classes), job.spec.class_weighting)
    steps = math.ceil(len(images) / job.spec.batch_size)
    with progress.bar(job.label, max(0, job.spec.epochs - state.epoch) * steps) as bar:
        while state.epoch < job.spec.epochs and not state.stalled():
            epoch = state.epoch
            job.switch(model, epoch, True)
            loss = _train_epoch(model, job, state, weights, bar)
            candidate = state.average or model
            job.switch(candidate, epoch, False)
            found = evaluate(candidate, validation, job.data.preprocess)
            state.history.append(Epoch(epoch + 1, loss, found.accuracy))
            state.judge(epoch, found, candidate)
            state.epoch += 1
            state.save()
            progress.say(
                f"{job.label}: epoch {state.epoch}/{job.spec.epochs} loss {loss:.3f} validation {found.accuracy:.4f}"
            )
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return Training(tuple(state.history), state.best_epoch, state.best.accuracy)


def _train_epoch(model: nn.Module, job: Job, state: "_State", weights: Tensor | None, bar: progress.Bar) -> float:
    seed = job.seed * 100_003 + state.epoch
    torch.manual_seed(seed)
    set_mode(model, training=True)
    frozen = _freeze(model, job, state.epoch)
    losses = []
    for images, labels in batches(
        job.data.splits["train"], job.data.preprocess, job.spec.batch_size, seed=seed, augment=job.augment
    ):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(job.spec, state.step, state.total_steps)
        logits = model(images)
        # Inception and GoogLeNet give auxiliary answers beside the real one while they train
        loss = _loss(logits if isinstance(logits, Tensor) else logits[0], labels, images, job, weights)
        value = loss.item()
        if not math.isfinite(value):
            raise ToolchainError(
                f"{job.label}: the loss became {value} in epoch {state.epoch + 1}; the last good epoch is kept. "
                f"Lower learning_rate (now {job.spec.learning_rate}) in the recipe and run again"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), job.spec.max_grad_norm)
        state.optimizer.step()
        state.advance(model)
        losses.append(value)
        bar.step(f"loss {value:.3f}")
    for parameter in frozen:
        parameter.requires_grad_(True)
    return sum(losses) / max(len(losses), 1)


def _loss(logits: Tensor, labels: Tensor, images: Tensor, job: Job, weights: Tensor | None) -> Tensor:
    loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=job.spec.label_smoothing)
    if job.teacher is None or job.spec.distill == 0:
        return loss
    with torch.no_grad():
        wanted = F.log_softmax(job.teacher.eval()(images) / job.spec.temperature, 1)
    given = F.log_softmax(logits / job.spec.temperature, 1)
    soft = F.kl_div(given, wanted, reduction="batchmean", log_target=True) * job.spec.temperature**2
    return (1 - job.spec.distill) * loss + job.spec.distill * soft


def _freeze(model: nn.Module, job: Job, epoch: int) -> list[nn.Parameter]:
    if epoch >= job.spec.freeze_epochs or not job.head:
        return []
    rest = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(job.head + ".")]
    for parameter in rest:
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # its statistics belong to the frozen weights
    return rest


def learning_rate(spec: TrainSpec, step: int, total: int) -> float:
    """Learning rate of a step: up and down along half cosines (Smith, arXiv 1708.07120), down only, or constant."""
    if spec.schedule == "constant" or total == 0:
        return spec.learning_rate
    rise = round(spec.warmup * total) if spec.schedule == "one-cycle" else 0
    if step < rise:
        return spec.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    share = (step - rise) / max(total - rise, 1)
    return spec.learning_rate * max((1 + math.cos(math.pi * share)) / 2, 1e-4)


def _class_weights(labels: Tensor, classes: int, power: float) -> Tensor | None:
    if power == 0:
        return None
    counts = torch.bincount(labels, minlength=classes).float()
    weights = (len(labels) / counts.clamp_min(1)) ** power
    return weights / (weights * counts).sum() * len(labels)


class _State:
    """All that a continued run needs, as tensors and a few numbers: no pickle."""

    def __init__(self, model: nn.Module, job: Job) -> None:
        self.model, self.job = model, job
        kernels = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]  # biases and norms are not decayed
        self.optimizer = torch.optim.AdamW(
            [{"params": kernels, "weight_decay": job.spec.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=job.spec.learning_rate,
        )
        self.total_steps = job.spec.epochs * math.ceil(len(job.data.splits["train"]) / job.spec.batch_size)
        self.average = copy.deepcopy(model) if job.spec.average else None
        self.epoch = self.step = 0
        self.history: list[Epoch] = []
        self.best_weights: Mapping[str, Tensor] | None = None
        self.best_epoch, self.best = -1, Score(-1.0, math.inf)

    def advance(self, model: nn.Module) -> None:
        """Counts a step and moves the running average."""
        self.step += 1
        if self.average is None:
            return
        decay = min(self.job.spec.average, self.step / (self.step + 10))
        now, done = model.state_dict(), set[int]()
        with torch.no_grad():
            # by name: the copy of an exported graph lists its tensors in another order; and once each: it shares some
            for name, mean in self.average.state_dict().items():
                if mean.data_ptr() not in done:
                    done.add(mean.data_ptr())
                    mean.lerp_(now[name], 1 - decay) if mean.is_floating_point() else mean.copy_(now[name])

    def judge(self, epoch: int, found: Score, model: nn.Module) -> None:
        """Keeps the weights when they are the best so far."""
        if found > self.best:
            self.best_epoch, self.best = epoch, found
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def stalled(self) -> bool:
        return 0 < self.job.spec.patience <= self.epoch - 1 - self.best_epoch

    def save(self) -> None:
        """Writes everything in one file, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()} if self.average else {}
        tensors |= {f"best.{k}": v for k, v in (self.best_weights or {}).items()}
        for index, slot in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        numbers = {
            "epoch": self.epoch, "step": self.step, "best_epoch": self.best_epoch, "best": [self.best.accuracy, self.best.loss],
            "history": records.plain(self.history),
        }  # fmt: skip
        clean = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        with records.writing(self.job.folder / CHECKPOINT) as out:
            out.write(save(clean, metadata={"state": json.dumps(numbers)}))

    def resume(self) -> None:
        """Takes up where a cut run stopped, if it did."""
        path = self.job.folder / CHECKPOINT
        if not path.exists():
            return
        with safetensors.safe_open(str(path), "pt") as file:
            numbers = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        if self.average is not None:
            self.average.load_state_dict(part("average."))
        self.best_weights = part("best.") or None
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, _, key = name.partition(".")
            slots.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.step = numbers["epoch"], numbers["step"]
        self.best_epoch, self.best = numbers["best_epoch"], Score(*numbers["best"])
        self.history = [Epoch(**entry) for entry in numbers["history"]]
        progress.say(f"{self.job.label}: continuing after epoch {self.epoch}")


@dataclass(frozen=True)
class Trained:
    """A stage's model with what is known of how it came about."""

    model: nn.Module
    key: str
    figures: Mapping[str, Any]  # history, best_epoch, best_accuracy and what the stage adds
    seconds: float


def store(
    stage: records.Stage, started: float, model: nn.Module, training: Training, figures: Mapping[str, Any]
) -> Trained:
    """Writes a trained stage's weights, then its record, and drops the checkpoint that is no longer needed."""
    save_weights(model, stage.folder / WEIGHTS)
    done = records.finish(stage, started, {**figures, **records.plain(training)})
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)
    assert done.figures is not None
    return Trained(set_mode(model, training=False), stage.key, done.figures, done.seconds)


def restored(stage: records.Stage, model: nn.Module) -> Trained:
    """The result of a stage that was done before, its weights put into `model`."""
    assert stage.figures is not None
    model.load_state_dict(load_file(stage.folder / WEIGHTS))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress.say(f"{stage.folder.parent.name}: kept from an earlier run ({stage.key})")
    return Trained(set_mode(model, training=False), stage.key, stage.figures, stage.seconds)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict as safetensors, atomically."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    with records.writing(path) as out:
        out.write(save(tensors))
