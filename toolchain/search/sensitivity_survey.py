"""Measure the accuracy of the dense model with one pruning group narrowed, or one residual block dropped, at a time.

Every result is written as soon as it is measured, so an interrupted survey goes on where it stopped.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.config.job import Job
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.data.decoded_dataset import Images
from toolchain.export import prune_graph, to_onnx
from toolchain.models import profile
from toolchain.pruning import channel_ranking, search_space, surgery
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace, Subnetwork, is_inside
from toolchain.search.sensitivity_curves import MissingReason, Sensitivity, SensitivityCurve, SensitivityPoint
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel

MAX_IMAGES, MIN_IMAGES = 500, 100  # validation images; the lower number for large networks
MAX_MACS = 6e11  # multiply-accumulates of the whole survey, about a minute of one core; above it, fewer images are used
MAX_SECONDS = 60.0  # of measuring
MAX_FINETUNE_TIME_SHARE = (
    0.1  # of the fine-tuning time, used where it is more: a large network takes long for everything
)
PRUNED_SHARES = (0.5, 0.75, 0.25)  # of a group's channels, the most informative first
MIN_SHARE_GAP = 0.125  # between two widths that are measured, as a share of a group's channels
BATCH_SIZE = 64  # fits the cache of a core: more than twice as fast as 256 for small images


def sample_stratified(labels: Tensor, count: int) -> list[int]:
    """Return at most `count` rows with every class in its share of all rows; the same rows at every call.

    Args:
        labels: class numbers, int64 [images].
        count: number of rows.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(labels[order], stable=True)]  # class by class, so that even steps keep the shares
    count = min(count, len(order))
    return sorted(int(order[(2 * i + 1) * len(order) // (2 * count)]) for i in range(count))


def compute_pruned_share(group: PruningGroup, plan: Surgery) -> float:
    """Return the share of a group's channels that a plan removes; 1 where all of its layers are in dropped blocks."""
    for layer in group.coupled_layers:
        if layer.layer_type == "norm" or any(is_inside(layer.module_name, block) for block in plan.dropped):
            continue
        rows = plan.keep.get(f"{layer.module_name}.weight", {}).get(0 if layer.role == "out" else 1)
        if rows is None:
            return 0.0
        kept = set(rows)
        return 1 - sum(indices[0] in kept for indices in layer.channel_indices) / group.channels
    return 1.0


@dataclass(frozen=True)
class _Trial:
    """One group at one width, or one block dropped."""

    name: str
    share: float  # of the channels that are removed
    subnetwork: Subnetwork


@dataclass(frozen=True)
class SensitivitySurvey:
    """The survey of one dense model and its plan."""

    job: Job
    finetuned: FinetunedModel
    plan: Surgery

    @property
    def dense(self) -> nn.Module:
        """The dense model."""
        return self.finetuned.trained.model

    @cached_property
    def images(self) -> Images:
        """The validation images that are used."""
        validation, models = self.finetuned.dataset.splits["val"], sum(map(len, self.trials)) + 1
        affordable = int(MAX_MACS / (profile.total_macs(self.space.full_layers) * models))
        return validation.select(sample_stratified(validation.labels, min(MAX_IMAGES, max(MIN_IMAGES, affordable))))

    @cached_property
    def space(self) -> SearchSpace:
        """What could be removed without `protect`, which does not change how channels rank within a group."""
        spec, image = self.job.recipe.prune, self.finetuned.dataset.example_input
        criterion = channel_ranking.prepare_criterion(self.finetuned, spec, self.job.work)
        return search_space.build_search_space(
            self.dense, image, head=self.finetuned.head, spec=dataclasses.replace(spec, protect=()),
            alignment=self.job.target.alignment, criterion=criterion.score, gradients=criterion.gradients,
            blocks=_find_droppable_blocks(self.dense, image) if spec.depth else (),
        )  # fmt: skip

    @cached_property
    def trials(self) -> list[list[_Trial]]:
        """The trials of each group, then of each block."""
        groups = [self._list_widths(index) for index in range(len(self.space.groups))]
        return [*groups, *(self._list_drops(block) for block in self.space.droppable_blocks)]

    def measure(self, path: Path) -> Sensitivity:
        """Run the trials that the file at `path` does not hold yet; it is written after every model."""
        trials, results = _interleave(self.trials), _Results(path)
        time_limit = max(MAX_SECONDS, MAX_FINETUNE_TIME_SHARE * self.finetuned.trained.seconds)
        with progress.show_bar("sensitivity: groups and blocks cut alone", len(trials) + 1) as bar:
            dense_correct = results.measure("", lambda: self._predict_correctly(self.dense))
            bar.step()
            for trial in trials:
                if results.seconds > time_limit and trial.name not in results.correct:
                    break
                results.measure(trial.name, partial(self._run_trial, trial.subnetwork))
                bar.step(trial.name)
        return self._make_curves(results.correct, np.array(dense_correct, bool))

    def _list_widths(self, index: int) -> list[_Trial]:
        """Return the widths to try of a group: the plan's own, then those nearest to `PRUNED_SHARES`."""
        group, unpruned = self.space.groups[index], self.space.unpruned
        if search_space.is_protected(group, self.job.recipe.prune.protect):
            return []
        planned = round(group.channels * (1 - compute_pruned_share(group, self.plan)))
        allowed, chosen = self.space.allowed_widths(index)[:-1], list[int]()
        candidates = [planned] if 0 < planned < group.channels else []
        candidates += [
            min(allowed, key=lambda width: (abs(group.channels * (1 - share) - width), -width))
            for share in PRUNED_SHARES
            if allowed
        ]
        for width in candidates:
            if all(abs(width - other) >= MIN_SHARE_GAP * group.channels for other in chosen):
                chosen.append(width)
        widths = unpruned.kept_channels
        return [
            _Trial(
                f"group {index}: {width} of {group.name}", 1 - width / group.channels,
                dataclasses.replace(unpruned, kept_channels=(*widths[:index], width, *widths[index + 1 :])),
            )
            for width in chosen
        ]  # fmt: skip

    def _list_drops(self, block: str) -> list[_Trial]:
        if search_space.is_protected_block(self.space.full_layers, block, self.job.recipe.prune.protect):
            return []
        dropped = dataclasses.replace(self.space.unpruned, dropped_blocks=frozenset({block}))
        return [_Trial(f"without {block}", 1.0, dropped)]

    def _run_trial(self, subnetwork: Subnetwork) -> list[bool] | None:
        """Return which images are predicted correctly; None where the network does not run, which must not end the job."""
        pruned = surgery.apply(self.dense, surgery.build(self.dense, self.space, subnetwork))
        pruned.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub misses this form
        with contextlib.suppress(RuntimeError):
            return self._predict_correctly(pruned)
        return None

    def _predict_correctly(self, model: nn.Module) -> list[bool]:
        logits = loop.predict(model, self.images, self.finetuned.dataset.preprocess, BATCH_SIZE)
        correct: list[bool] = (logits.argmax(1) == self.images.labels).tolist()
        return correct

    def _make_curves(self, results: Mapping[str, Any], dense_correct: np.ndarray) -> Sensitivity:
        """Return all curves, with the reason where nothing was measured."""
        groups, blocks, curves = self.space.groups, self.space.droppable_blocks, list[SensitivityCurve]()
        for group, trials in zip(groups, self.trials, strict=False):
            protected = search_space.is_protected(group, self.job.recipe.prune.protect)
            points, why = _make_points(trials, results, dense_correct, "protected" if protected else "too narrow")
            layers = tuple(m.module_name for m in group.coupled_layers if m.role == "out" and m.layer_type != "norm")
            share = compute_pruned_share(group, self.plan)
            curves.append(SensitivityCurve(group.name, "channels", group.channels, layers, share, points, why))
        for block, trials in zip(blocks, self.trials[len(groups) :], strict=True):
            points, why = _make_points(trials, results, dense_correct, "protected")
            share = float(block in self.plan.dropped)
            curves.append(SensitivityCurve(block, "block", 0, (block,), share, points, why))
        curves.sort(key=lambda curve: curve.severity, reverse=True)
        return Sensitivity(statistics.accuracy(dense_correct), tuple(curves))


def _make_points(
    trials: Sequence[_Trial], results: Mapping[str, Any], dense_correct: np.ndarray, without_trials: MissingReason
) -> tuple[tuple[SensitivityPoint, ...], MissingReason]:
    """Return the points of one curve, and why there are none.

    Args:
        trials: of the curve.
        results: which images each trial predicts correctly, by name; None where it did not run.
        dense_correct: which images the dense model predicts correctly, bool [images].
        without_trials: the reason where there are no trials.
    """
    points = []
    for trial in sorted(trials, key=lambda trial: trial.share):
        if results.get(trial.name) is not None:
            correct = np.array(results[trial.name], bool)
            drop = statistics.accuracy_drop(dense_correct, correct)
            points.append(SensitivityPoint(trial.share, statistics.accuracy(correct), drop))
    if points:
        return tuple(points), ""
    if not trials:
        return (), without_trials
    return (), "does not run" if any(trial.name in results for trial in trials) else "no time"


def _interleave(rows: Sequence[Sequence[_Trial]]) -> list[_Trial]:
    """Return the first trial of every row, then the second of every row: when time is up, every curve has something."""
    return [row[turn] for turn in range(max(map(len, rows), default=0)) for row in rows if turn < len(row)]


class _Results:
    """Which images each model predicts correctly, and the time it took; written after every model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content: dict[str, Any] = files.read_json(path) if path.exists() else {}
        self.seconds: float = content.get("seconds", 0.0)
        self.correct: dict[str, list[int] | None] = content.get("answers", {})

    def measure(self, name: str, predict: Callable[[], list[bool] | None]) -> list[int] | None:
        """Return the result under this name, measured now unless an earlier run did."""
        if name not in self.correct:
            started = time.monotonic()
            correct = predict()
            self.correct[name] = None if correct is None else [int(flag) for flag in correct]
            self.seconds += time.monotonic() - started
            files.write_json(self.path, {"seconds": self.seconds, "answers": self.correct})
        return self.correct[name]


def _find_droppable_blocks(dense: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Return the residual blocks that can be dropped; none where the graph cannot be exported."""
    if not _has_shape_preserving_module(dense, image):
        return ()  # saves the seconds of an export
    try:
        return prune_graph.find_droppable_blocks(to_onnx.export_graph(copy.deepcopy(dense), image))
    except ToolchainError as reason:  # no error: the job exports the network later in a form that more networks allow
        progress.log(f"sensitivity: residual blocks are left out: {reason}")
        return ()


def _has_shape_preserving_module(dense: nn.Module, image: Tensor) -> bool:
    """Return whether any module with children gives the shape that it takes, as a residual block does."""
    preserves_shape = []

    def compare_shapes(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shapes = [getattr(value, "shape", None) for value in (*inputs[:1], output)]
        preserves_shape.append(shapes[0] == shapes[-1])

    model = copy.deepcopy(dense).eval()
    for module in model.modules():
        if next(module.children(), None) is not None:
            module.register_forward_hook(compare_shapes)
    with torch.inference_mode():
        model(image)
    return any(preserves_shape)
