"""The one training loop: used by every stage that trains, resumable after any epoch.

Every random choice of an epoch comes from (seed, epoch), so a run that was killed and continued ends with the
same weights as one that was not.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from toolchain.config.recipe import AugmentSpec, TrainSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.data.loader import TrainingBatch, ordered_batches, training_batches
from toolchain.training.training_state import EpochMetrics, Score, TrainingState

CHECKPOINT_FILE = "training.safetensors"
WEIGHTS_FILE = "weights.safetensors"
EVALUATION_BATCH_SIZE = 256
DIVERGED_LOSS = 100.0  # mean cross-entropy of an epoch; guessing among a thousand classes is 7


@dataclass(frozen=True)
class TrainingResult:
    """A finished training."""

    history: tuple[EpochMetrics, ...]
    best_epoch: int  # from 0; -1: the weights it started with
    best_accuracy: float  # on validation
    best_balanced: float


PhaseHook = Callable[[nn.Module, int, bool], None]  # model, epoch, whether training (or validating) is next


@dataclass(frozen=True)
class TrainingJob:
    """What to train with; the model itself is passed beside it."""

    dataset: Dataset
    spec: TrainSpec
    augment: AugmentSpec
    seed: int
    label: str
    folder: Path  # for the checkpoint
    balance: float = 0.0  # 0 accuracy to 1 balanced accuracy
    teacher: nn.Module | None = None
    head: str = ""  # module that learns alone in the first `freeze_epochs`
    frozen_modules: tuple[str, ...] = ()  # modules that never learn
    before_phase: PhaseHook = lambda model, epoch, training: None  # called before training and before validating
    penalty: Callable[[nn.Module], Tensor] | None = None  # added to each step's loss; the last epoch is then the best


def set_mode(model: nn.Module, *, training: bool) -> nn.Module:
    """Training or inference form; an exported graph has only the form it was exported in."""
    return model if isinstance(model, GraphModule) else model.train(training)


def predict(
    model: nn.Module, images: Images, preprocess: Preprocessing, batch_size: int = EVALUATION_BATCH_SIZE
) -> Tensor:
    """Logits [images, classes] of a whole split, in order."""
    set_mode(model, training=False)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch, _ in ordered_batches(images, preprocess, batch_size)])


def evaluate(model: nn.Module, images: Images, preprocess: Preprocessing, balance: float = 0.0) -> Score:
    """How well a split is classified; `balance` says what is aimed at, as in `Recipe`."""
    return score(predict(model, images, preprocess), images.labels, balance)


def score(logits: Tensor, labels: Tensor, balance: float = 0.0) -> Score:
    """How well logits [images, classes] fit labels [images]."""
    correct = logits.argmax(1) == labels
    accuracy = correct.float().mean().item()
    by_class = [correct[labels == label].float().mean() for label in set(labels.tolist())]
    balanced = torch.stack(by_class).mean().item()
    aim = (1 - balance) * accuracy + balance * balanced
    return Score(aim, -F.cross_entropy(logits, labels).item(), accuracy, balanced)


def train(model: nn.Module, job: TrainingJob, *, keep_start: bool = False, margin: float = 0.0) -> TrainingResult:
    """Trains `model` in place and leaves it with the weights of its best validated epoch.

    Continues from `job.folder` when an earlier run was cut. With `keep_start` the weights it begins with compete
    too, so that the result is never worse than them on validation; `margin` is by how much they must be beaten.

    Raises:
        ToolchainError: the loss became NaN or infinite, or grew beyond reason with nothing better to keep; the last
            good epoch stays in the folder.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub misses this form
    images, validation = job.dataset.splits["train"], job.dataset.splits["val"]
    steps = math.ceil(len(images) / job.spec.batch_size)
    state = TrainingState(model, job.spec, job.spec.epochs * steps, job.folder / CHECKPOINT_FILE)
    state.resume()
    if state.epoch:
        progress.log(f"{job.label}: continuing after epoch {state.epoch}")
    if keep_start and state.epoch == 0 and state.best_weights is None:
        start = evaluate(model, validation, job.dataset.preprocess, job.balance)
        state.keep_best(-1, dataclasses.replace(start, aim=start.aim + margin), model)
    prior = _prior(images, len(job.dataset.classes)) if job.balance else None
    with progress.show_bar(job.label, max(0, job.spec.epochs - state.epoch) * steps) as bar:
        while state.epoch < job.spec.epochs and not state.is_out_of_patience():
            epoch = state.epoch
            job.before_phase(model, epoch, True)
            loss = train_epoch(model, job, state, prior, bar)
            if loss > DIVERGED_LOSS and job.penalty is None:  # a penalty has no scale of its own
                why = (
                    f"{job.label}: the loss grew to {loss:.3g} in epoch {epoch + 1}; "
                    f"lower learning_rate (now {job.spec.learning_rate})"
                )
                if state.best_weights is None:
                    raise ToolchainError(f"{why} in the recipe and run again")
                progress.log(f"{why}; what was best before is kept")
                break
            candidate = state.averaged_model or model
            job.before_phase(candidate, epoch, False)
            found = evaluate(candidate, validation, job.dataset.preprocess, job.balance)
            state.history.append(EpochMetrics(epoch + 1, loss, found.accuracy, found.balanced))
            # validation knows nothing of what the penalty is for: it would choose the epoch that has least of it
            state.keep_best(epoch, found, candidate, latest=job.penalty is not None)
            state.epoch += 1
            state.save()
            progress.log(
                f"{job.label}: epoch {state.epoch}/{job.spec.epochs} loss {loss:.3f} validation {found.accuracy:.4f}"
            )
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return TrainingResult(tuple(state.history), state.best_epoch, state.best_score.accuracy, state.best_score.balanced)


def train_epoch(
    model: nn.Module, job: TrainingJob, state: TrainingState, prior: Tensor | None, bar: progress.ProgressBar
) -> float:
    """One epoch over the training images; returns the mean loss.

    Raises:
        ToolchainError: the loss became NaN or infinite.
    """
    seed = job.seed * 100_003 + state.epoch
    torch.manual_seed(seed)
    set_mode(model, training=True)
    frozen = _freeze(model, job, state.epoch)
    for module in model.modules() if _head_alone(job, state.epoch) or job.spec.freeze_norm else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # its statistics belong to the frozen weights
    for name in job.frozen_modules:
        model.get_submodule(name).eval()
    losses = []
    for batch in training_batches(job.dataset, job.spec.batch_size, seed=seed, augment=job.augment):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(job.spec, state.step, state.total_steps) * group["share"]
        logits = model(batch.images)
        # Inception and GoogLeNet give auxiliary answers beside the real one while they train
        loss = _loss(logits if isinstance(logits, Tensor) else logits[0], batch, job, prior)
        loss = loss if job.penalty is None else loss + job.penalty(model)
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
        state.finish_step(model)
        losses.append(value)
        bar.step(f"loss {value:.3f}")
    for parameter in frozen:
        parameter.requires_grad_(True)
    return sum(losses) / max(len(losses), 1)


def _loss(logits: Tensor, batch: TrainingBatch, job: TrainingJob, prior: Tensor | None) -> Tensor:
    """Cross-entropy, its logits adjusted by the classes' frequencies (Menon et al., arXiv 2007.07314), and distillation."""
    adjusted = logits if prior is None else logits + job.balance * prior.log()
    each = F.cross_entropy(adjusted, batch.soft_labels, label_smoothing=job.spec.label_smoothing, reduction="none")
    loss = (each * batch.loss_weights).sum() / batch.loss_weights.sum()
    if job.teacher is None or job.spec.distill == 0:
        return loss
    with torch.no_grad():
        wanted = F.log_softmax(job.teacher.eval()(batch.images) / job.spec.temperature, 1)
    given = F.log_softmax(logits / job.spec.temperature, 1)
    apart = F.kl_div(given, wanted, reduction="none", log_target=True).sum(1) * job.spec.temperature**2
    soft = (apart * batch.loss_weights).sum() / batch.loss_weights.sum()
    return (1 - job.spec.distill) * loss + job.spec.distill * soft


def _head_alone(job: TrainingJob, epoch: int) -> bool:
    return epoch < job.spec.freeze_epochs and bool(job.head)


def _freeze(model: nn.Module, job: TrainingJob, epoch: int) -> list[nn.Parameter]:
    """Parameters that do not learn in this epoch; they take no gradient until it is over."""
    alone, frozen = _head_alone(job, epoch), tuple(f"{name}." for name in job.frozen_modules)
    rest = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (not name.startswith(job.head + ".") if alone else name.startswith(frozen))
    ]
    for parameter in rest:
        parameter.requires_grad_(False)
    return rest


def learning_rate_at(spec: TrainSpec, step: int, total: int) -> float:
    """Learning rate of a step: up and down along half cosines (Smith, arXiv 1708.07120), down only, or constant."""
    if spec.schedule == "constant" or total == 0:
        return spec.learning_rate
    rise = round(spec.warmup * total) if spec.schedule == "one-cycle" else 0
    if step < rise:
        return spec.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    share = (step - rise) / max(total - rise, 1)
    return spec.learning_rate * max((1 + math.cos(math.pi * share)) / 2, 1e-4)


def _prior(images: Images, classes: int) -> Tensor:
    """Share of each class in the training images; a class that is missing counts as one image."""
    counts = torch.bincount(images.labels, weights=images.loss_weights, minlength=classes).float().clamp_min(1)
    return counts / counts.sum()
