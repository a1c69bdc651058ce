"""The training loop that every stage uses, resumable after any epoch.

Every random choice of an epoch is seeded by (seed, epoch), so a run that was killed and resumed ends with the same
weights as one that ran through.
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
DIVERGED_LOSS = 100.0  # mean loss of an epoch; cross-entropy of guessing among a thousand classes is 7
# with a teacher, the limit is at least this multiple of the epoch's first loss: with large logits, distillation starts high
DIVERGED_FACTOR = 2.0


@dataclass(frozen=True)
class TrainingResult:
    """History and best epoch of a finished training."""

    history: tuple[EpochMetrics, ...]
    best_epoch: int  # from 0; -1: the weights that training started from
    best_accuracy: float  # on validation
    best_balanced: float  # balanced accuracy of that epoch, on validation


PhaseHook = Callable[[nn.Module, int, bool], None]  # model, epoch, True before training and False before validation


@dataclass(frozen=True)
class TrainingJob:
    """The settings of one training: data, schedule, losses and hooks. The model is passed separately."""

    dataset: Dataset
    spec: TrainSpec
    augment: AugmentSpec
    seed: int
    label: str  # name of the training in logs and progress bars
    folder: Path  # for the checkpoint
    balance: float = 0.0  # what the best epoch is chosen by: 0 accuracy to 1 balanced accuracy
    teacher: nn.Module | None = None  # for distillation
    head: str = ""  # the only module trained in the first `freeze_epochs`
    frozen_modules: tuple[str, ...] = ()  # modules that are never trained
    before_phase: PhaseHook = lambda model, epoch, training: None  # called before each training and validation phase
    penalty: Callable[[nn.Module], Tensor] | None = None  # added to the loss of each step; the last epoch is then kept


def set_mode(model: nn.Module, *, training: bool) -> nn.Module:
    """Set training or inference mode, except on an exported graph, whose mode is fixed at export."""
    return model if isinstance(model, GraphModule) else model.train(training)


def predict(
    model: nn.Module, images: Images, preprocess: Preprocessing, batch_size: int = EVALUATION_BATCH_SIZE
) -> Tensor:
    """Return the logits [images, classes] of a whole split, in the order of its images."""
    set_mode(model, training=False)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch, _ in ordered_batches(images, preprocess, batch_size)])


def evaluate(model: nn.Module, images: Images, preprocess: Preprocessing, balance: float = 0.0) -> Score:
    """Score a model on a split; `balance` mixes accuracy (0) and balanced accuracy (1), as in `Recipe`."""
    return score(predict(model, images, preprocess), images.labels, balance)


def score(logits: Tensor, labels: Tensor, balance: float = 0.0) -> Score:
    """Score logits [images, classes] against labels [images]; `balance` as in `evaluate`."""
    correct = logits.argmax(1) == labels
    accuracy = correct.float().mean().item()
    by_class = [correct[labels == label].float().mean() for label in set(labels.tolist())]
    balanced = torch.stack(by_class).mean().item()
    aim = (1 - balance) * accuracy + balance * balanced
    return Score(aim, -F.cross_entropy(logits, labels).item(), accuracy, balanced)


def train(model: nn.Module, job: TrainingJob, *, keep_start: bool = False, margin: float = 0.0) -> TrainingResult:
    """Train `model` in place and load the weights of its best validated epoch into it.

    Resumes from `job.folder` if an earlier run was interrupted.

    Args:
        model: the network to train.
        job: how to train it.
        keep_start: let the initial weights compete too, so that the result is never worse than them on validation.
        margin: accuracy, 0..1, by which an epoch has to beat the initial weights.

    Raises:
        ToolchainError: the loss became NaN or infinite, or training diverged before any epoch was worth keeping. The
            last good epoch stays in the folder.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub misses this form
    images, validation = job.dataset.splits["train"], job.dataset.splits["val"]
    steps = math.ceil(len(images) / job.spec.batch_size)
    state = TrainingState(model, job.spec, job.spec.epochs * steps, job.folder / CHECKPOINT_FILE)
    state.resume()
    if state.epoch:
        progress.log(f"{job.label}: resuming after epoch {state.epoch}")
    if keep_start and state.epoch == 0 and state.best_weights is None:
        start = evaluate(model, validation, job.dataset.preprocess, job.balance)
        state.keep_best(-1, dataclasses.replace(start, aim=start.aim + margin), model)
    prior = _class_shares(images, len(job.dataset.classes)) if job.balance else None
    with progress.show_bar(job.label, max(0, job.spec.epochs - state.epoch) * steps) as bar:
        while state.epoch < job.spec.epochs and not state.is_out_of_patience():
            job.before_phase(model, state.epoch, True)
            loss, first_loss = train_epoch(model, job, state, prior, bar)
            limit = max(DIVERGED_LOSS, DIVERGED_FACTOR * first_loss if job.teacher is not None else 0.0)
            if loss > limit and job.penalty is None:  # with a penalty, the loss has no scale to compare with
                _report_divergence(job, state, loss)
                break
            _validate_epoch(model, job, state, loss)
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return TrainingResult(tuple(state.history), state.best_epoch, state.best_score.accuracy, state.best_score.balanced)


def _report_divergence(job: TrainingJob, state: TrainingState, loss: float) -> None:
    """Log that training stops because it diverged.

    Raises:
        ToolchainError: there are no earlier weights to go on with.
    """
    problem = (
        f"{job.label}: training diverged: the mean loss of epoch {state.epoch + 1} is {loss:.3g} "
        f"(more than {DIVERGED_LOSS:g}, or twice what it began with where there is a teacher)."
    )
    if state.best_weights is None:
        raise ToolchainError(
            f"{problem} Lower learning_rate in the recipe (now {job.spec.learning_rate}) and run again"
        )
    progress.log(
        f"{problem} It stops here and the best weights so far are kept; "
        f"consider a lower learning_rate (now {job.spec.learning_rate})"
    )


def _validate_epoch(model: nn.Module, job: TrainingJob, state: TrainingState, loss: float) -> None:
    """Score the epoch just trained on validation, keep its weights if they are the best, and save the checkpoint."""
    epoch, candidate = state.epoch, state.averaged_model or model
    job.before_phase(candidate, epoch, False)
    validated = evaluate(candidate, job.dataset.splits["val"], job.dataset.preprocess, job.balance)
    state.history.append(EpochMetrics(epoch + 1, loss, validated.accuracy, validated.balanced))
    # Validation does not measure what the penalty is for: it would choose the epoch that the penalty changed least.
    state.keep_best(epoch, validated, candidate, latest=job.penalty is not None)
    state.epoch += 1
    state.save()
    progress.log(
        f"{job.label}: epoch {state.epoch}/{job.spec.epochs}, loss {loss:.3f}, "
        f"validation accuracy {validated.accuracy:.4f}"
    )


def train_epoch(
    model: nn.Module, job: TrainingJob, state: TrainingState, prior: Tensor | None, bar: progress.ProgressBar
) -> tuple[float, float]:
    """Train for one epoch and return the mean loss of its steps, and the loss of the first.

    Args:
        model: the network, trained in place.
        job: how to train it.
        state: optimizer, step count and averaged weights, updated in place.
        prior: share of each class in the training images, [classes], for balanced training; None: no adjustment.
        bar: progress bar, advanced by one per step.

    Raises:
        ToolchainError: the loss became NaN or infinite.
    """
    seed = job.seed * 100_003 + state.epoch
    torch.manual_seed(seed)
    set_mode(model, training=True)
    frozen = _freeze(model, job, state.epoch)
    for module in model.modules() if _trains_head_only(job, state.epoch) or job.spec.freeze_norm else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # the running statistics belong to the frozen weights
    for name in job.frozen_modules:
        model.get_submodule(name).eval()
    losses = []
    for batch in training_batches(job.dataset, job.spec.batch_size, seed=seed, augment=job.augment):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(job.spec, state.step, state.total_steps) * group["share"]
        logits = model(batch.images)
        # in training mode, Inception and GoogLeNet return the logits of their auxiliary heads as well
        loss = _loss(logits if isinstance(logits, Tensor) else logits[0], batch, job, prior)
        loss = loss if job.penalty is None else loss + job.penalty(model)
        value = loss.item()
        if not math.isfinite(value):
            raise ToolchainError(
                f"{job.label}: the loss became {value} in epoch {state.epoch + 1}. The last good epoch is kept. "
                f"Lower learning_rate in the recipe (now {job.spec.learning_rate}) and run again"
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
    return sum(losses) / max(len(losses), 1), next(iter(losses), 0.0)


def _loss(logits: Tensor, batch: TrainingBatch, job: TrainingJob, prior: Tensor | None) -> Tensor:
    """Return cross-entropy, mixed with distillation where there is a teacher, both weighted by image.

    Source: logits adjusted by the class frequencies, Menon et al., arXiv 2007.07314.
    """
    adjusted = logits if prior is None else logits + job.balance * prior.log()
    losses = F.cross_entropy(adjusted, batch.soft_labels, label_smoothing=job.spec.label_smoothing, reduction="none")
    loss = (losses * batch.loss_weights).sum() / batch.loss_weights.sum()
    if job.teacher is None or job.spec.distill == 0:
        return loss
    with torch.no_grad():
        teacher_log_probabilities = F.log_softmax(job.teacher.eval()(batch.images) / job.spec.temperature, 1)
    log_probabilities = F.log_softmax(logits / job.spec.temperature, 1)
    divergence = F.kl_div(log_probabilities, teacher_log_probabilities, reduction="none", log_target=True).sum(1)
    divergence = divergence * job.spec.temperature**2
    soft = (divergence * batch.loss_weights).sum() / batch.loss_weights.sum()
    return (1 - job.spec.distill) * loss + job.spec.distill * soft


def _trains_head_only(job: TrainingJob, epoch: int) -> bool:
    return epoch < job.spec.freeze_epochs and bool(job.head)


def _freeze(model: nn.Module, job: TrainingJob, epoch: int) -> list[nn.Parameter]:
    """Turn off the gradients of the parameters that are not trained in this epoch, and return them."""
    head_only, frozen_prefixes = _trains_head_only(job, epoch), tuple(f"{name}." for name in job.frozen_modules)
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (not name.startswith(job.head + ".") if head_only else name.startswith(frozen_prefixes))
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def learning_rate_at(spec: TrainSpec, step: int, total: int) -> float:
    """Return the learning rate of a step.

    "one-cycle" rises and falls along half cosines, "cosine" only falls, "constant" does neither.

    Source: one-cycle, Smith, arXiv 1708.07120.
    """
    if spec.schedule == "constant" or total == 0:
        return spec.learning_rate
    rise = round(spec.warmup * total) if spec.schedule == "one-cycle" else 0
    if step < rise:
        return spec.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    share = (step - rise) / max(total - rise, 1)
    return spec.learning_rate * max((1 + math.cos(math.pi * share)) / 2, 1e-4)


def _class_shares(images: Images, classes: int) -> Tensor:
    """Return the share of each class in the training images, [classes]; a class without images counts as one image."""
    counts = torch.bincount(images.labels, weights=images.loss_weights, minlength=classes).float().clamp_min(1)
    return counts / counts.sum()
