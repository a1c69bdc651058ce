"""sensitivity: dense model, plan -> accuracy on validation against the share that is pruned of each group of channels.

Each group is cut alone, the least important channels first, and nothing is trained afterwards (Li et al., arXiv
1608.08710; Han et al., arXiv 1506.02626): what falls soon is what the network can least do without. It explains the
plan and is no part of it, so it looks at a part of the validation images and stops when its time is up.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.config.job import Job
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval
from toolchain.data.decoded_dataset import Images
from toolchain.export import prune_graph, to_onnx
from toolchain.models import profile
from toolchain.pruning import channel_ranking, surgery
from toolchain.pruning import search_space as options_module
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace, Subnetwork, is_inside
from toolchain.search.pruning_plan import PruningPlan
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel

VERSION = 1
MAX_IMAGES, MIN_IMAGES = 500, 100  # of validation, at most; and where the network is large
MAX_MACS = 6e11  # multiply-accumulates in all, that fewer images are looked at than the most: a minute of one core
MAX_SECONDS = 60.0  # of measuring, at most
MAX_FINETUNE_TIME_SHARE = (
    0.1  # of the time that fine-tuning took, where that is more: a large network takes long for everything
)
PRUNED_SHARES = (0.5, 0.75, 0.25)  # of a group's channels, the most telling first
MIN_SHARE_GAP = 0.125  # of a group's channels, at least, between two widths that are measured
BATCH_SIZE = 64  # stays in the cache of a core: over twice as fast as 256 for small pictures
POINTS_FILE = "points.json"  # what is measured so far

CurveKind = Literal["channels", "block"]
MissingReason = Literal["", "protected", "too narrow", "no time", "does not run"]


@dataclass(frozen=True)
class SensitivityPoint:
    """What is left of the accuracy with one group narrowed, or one block left out."""

    share: float  # of the channels that are gone
    accuracy: Interval
    drop: Interval  # against the dense model, paired over the same images


@dataclass(frozen=True)
class SensitivityCurve:
    """One group of channels, or one residual block."""

    name: str  # the layer that produces the channels, or the block
    kind: CurveKind
    channels: int  # 0 of a block
    layers: tuple[str, ...]  # whose outputs go together
    cut: float  # share that the plan really takes
    points: tuple[SensitivityPoint, ...]  # in the order of their shares
    why: MissingReason  # there are no points

    @property
    def severity(self) -> tuple[float, float]:
        """What orders curves: accuracy lost at half of the channels, then the most that is lost; of a block all of it.

        Between and beyond what was measured on a straight line.
        """
        shares, drops = [0.0, *(p.share for p in self.points)], [0.0, *(p.drop.estimate for p in self.points)]
        if not self.points or self.kind == "block":
            return drops[-1] if self.points else -np.inf, 0.0
        return float(np.interp(0.5, shares, drops)) * max(1.0, 0.5 / shares[-1]), max(drops)


@dataclass(frozen=True)
class Sensitivity:
    """All curves, the most sensitive first."""

    dense: Interval  # accuracy with nothing cut, on the same images
    curves: tuple[SensitivityCurve, ...]


def run(job: Job, adapted: FinetunedModel, plan: PruningPlan) -> Sensitivity | None:
    """Measures how much accuracy each group of channels and each residual block costs; nothing where nothing is cut.

    Args:
        adapted: the dense model and its validation images, the only ones that are looked at.
        plan: its widths are measured too, and it says which share really goes.
    """
    if not (job.recipe.prune.sensitivity and plan.removes_anything):
        return None
    # the plan's key covers model, images, criterion, its settings and the alignment
    key = files.digest(VERSION, plan.key, plan.surgery, MAX_IMAGES, MAX_SECONDS, PRUNED_SHARES, MIN_SHARE_GAP)
    with stage_cache.open_stage(job.work, "sensitivity", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            found = _Survey(job, adapted, plan.surgery).run(stage.folder / POINTS_FILE)
            stage = stage_cache.finish(stage, started, {"found": found})
            (stage.folder / POINTS_FILE).unlink(missing_ok=True)
        assert stage.record is not None
    found = _read(stage.record["found"])
    progress.log(_summary(found, stage.seconds))
    return found


def sample_stratified(labels: Tensor, count: int) -> list[int]:
    """At most `count` rows, the same at every call, with every class as frequent among them as among all."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(labels[order], stable=True)]  # class by class; evenly spaced steps keep their shares
    count = min(count, len(order))
    return sorted(int(order[(2 * i + 1) * len(order) // (2 * count)]) for i in range(count))


def compute_pruned_share(group: PruningGroup, plan: Surgery) -> float:
    """Share of a group's channels that a plan takes; 1 where all that sees them goes with a block."""
    for member in group.coupled_layers:
        if member.layer_type == "norm" or any(is_inside(member.module_name, block) for block in plan.dropped):
            continue
        kept = plan.keep.get(f"{member.module_name}.weight", {}).get(0 if member.role == "out" else 1)
        if kept is None:
            return 0.0
        stay = set(kept)
        return 1 - sum(rows[0] in stay for rows in member.channel_indices) / group.channels
    return 1.0


@dataclass(frozen=True)
class _Trial:
    """One way of cutting one thing."""

    name: str
    share: float
    choice: Subnetwork


@dataclass(frozen=True)
class _Survey:
    """What the curves are drawn from."""

    job: Job
    adapted: FinetunedModel
    plan: Surgery

    @property
    def image(self) -> Tensor:
        return self.adapted.dataset.example_input

    @property
    def dense(self) -> nn.Module:
        return self.adapted.trained.model

    @cached_property
    def images(self) -> Images:
        held, trials = self.adapted.dataset.splits["val"], sum(map(len, self.trials)) + 1
        affordable = int(MAX_MACS / (profile.total_macs(self.options.full_layers) * trials))
        return held.select(sample_stratified(held.labels, min(MAX_IMAGES, max(MIN_IMAGES, affordable))))

    @cached_property
    def options(self) -> SearchSpace:
        """What may be cut, what is protected included: how channels rank within a group does not depend on it."""
        spec = self.job.recipe.prune
        ranking = channel_ranking.prepare_criterion(self.adapted, spec, self.job.work)
        return options_module.build_search_space(
            self.dense, self.image, head=self.adapted.head, spec=dataclasses.replace(spec, protect=()),
            alignment=self.job.target.alignment, criterion=ranking.score, gradients=ranking.gradients,
            blocks=_blocks(self.dense, self.image) if spec.depth else (),
        )  # fmt: skip

    @cached_property
    def trials(self) -> list[list["_Trial"]]:
        """What to measure for each group, then for each block."""
        groups = [self._widths(index) for index in range(len(self.options.groups))]
        return [*groups, *(self._without(block) for block in self.options.droppable_blocks)]

    def run(self, path: Path) -> Sensitivity:
        """Measures what is not in the file at `path` yet; it is written after every model."""
        trials, known = _in_turn(self.trials), _Known(path)
        most = max(MAX_SECONDS, MAX_FINETUNE_TIME_SHARE * self.adapted.trained.seconds)
        with progress.show_bar("sensitivity: parts cut alone", len(trials) + 1) as bar:
            whole = known.measure("", lambda: self._right(self.dense))
            bar.step()
            for trial in trials:
                if known.seconds > most and trial.name not in known.answers:
                    break
                known.measure(trial.name, partial(self._cut, trial.choice))
                bar.step(trial.name)
        return self._curves(known.answers, np.array(whole, bool))

    def _widths(self, index: int) -> list["_Trial"]:
        """Widths to try of a group: the plan's own, then those nearest to the usual shares."""
        group, whole = self.options.groups[index], self.options.unpruned
        if options_module.is_protected(group, self.job.recipe.prune.protect):
            return []
        planned = round(group.channels * (1 - compute_pruned_share(group, self.plan)))
        possible, chosen = self.options.allowed_widths(index)[:-1], list[int]()
        wanted = [planned] if 0 < planned < group.channels else []
        wanted += [
            min(possible, key=lambda w: (abs(group.channels * (1 - share) - w), -w))
            for share in PRUNED_SHARES
            if possible
        ]
        for width in wanted:
            if all(abs(width - other) >= MIN_SHARE_GAP * group.channels for other in chosen):
                chosen.append(width)
        return [
            _Trial(
                f"group {index}: {width} of {group.name}", 1 - width / group.channels,
                dataclasses.replace(whole, kept_channels=(*whole.kept_channels[:index], width, *whole.kept_channels[index + 1 :])),
            )
            for width in chosen
        ]  # fmt: skip

    def _without(self, block: str) -> list["_Trial"]:
        if options_module.is_protected_block(self.options.full_layers, block, self.job.recipe.prune.protect):
            return []
        return [
            _Trial(
                f"without {block}", 1.0, dataclasses.replace(self.options.unpruned, dropped_blocks=frozenset({block}))
            )
        ]

    def _cut(self, choice: Subnetwork) -> list[bool] | None:
        """Which images are still right; None where the network cannot run like that, which no plan is to fail for."""
        small = surgery.apply(self.dense, surgery.build(self.dense, self.options, choice))
        small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub misses this form
        with contextlib.suppress(RuntimeError):
            return self._right(small)
        return None

    def _right(self, model: nn.Module) -> list[bool]:
        logits = loop.predict(model, self.images, self.adapted.dataset.preprocess, BATCH_SIZE)
        right: list[bool] = (logits.argmax(1) == self.images.labels).tolist()
        return right

    def _curves(self, answers: Mapping[str, Any], whole: np.ndarray) -> Sensitivity:
        """Everything that was measured, and why something was not."""
        groups, blocks, found = self.options.groups, self.options.droppable_blocks, list[SensitivityCurve]()
        for group, trials in zip(groups, self.trials, strict=False):
            guarded = options_module.is_protected(group, self.job.recipe.prune.protect)
            points, why = _points(trials, answers, whole, "protected" if guarded else "too narrow")
            together = tuple(m.module_name for m in group.coupled_layers if m.role == "out" and m.layer_type != "norm")
            gone = compute_pruned_share(group, self.plan)
            found.append(SensitivityCurve(group.name, "channels", group.channels, together, gone, points, why))
        for block, trials in zip(blocks, self.trials[len(groups) :], strict=True):
            points, why = _points(trials, answers, whole, "protected")
            found.append(SensitivityCurve(block, "block", 0, (block,), float(block in self.plan.dropped), points, why))
        return Sensitivity(
            statistics.accuracy(whole), tuple(sorted(found, key=lambda curve: curve.severity, reverse=True))
        )


def _points(
    trials: Sequence[_Trial], answers: Mapping[str, Any], whole: np.ndarray, untried: MissingReason
) -> tuple[tuple[SensitivityPoint, ...], MissingReason]:
    """The points of one curve; why there are none."""
    found = []
    for trial in sorted(trials, key=lambda trial: trial.share):
        if answers.get(trial.name) is not None:
            right = np.array(answers[trial.name], bool)
            found.append(
                SensitivityPoint(trial.share, statistics.accuracy(right), statistics.accuracy_drop(whole, right))
            )
    if found:
        return tuple(found), ""
    if not trials:
        return (), untried
    return (), "does not run" if any(trial.name in answers for trial in trials) else "no time"


def _in_turn(rounds: Sequence[Sequence[_Trial]]) -> list[_Trial]:
    """The first of every row, then the second of every row: when time is up, all have something."""
    return [row[turn] for turn in range(max(map(len, rounds), default=0)) for row in rounds if turn < len(row)]


class _Known:
    """Which images each model got right, kept on disk as soon as it is known, with the time that it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        read: dict[str, Any] = files.read_json(path) if path.exists() else {}
        self.seconds: float = read.get("seconds", 0.0)
        self.answers: dict[str, list[int] | None] = read.get("answers", {})

    def measure(self, name: str, right: Callable[[], list[bool] | None]) -> list[int] | None:
        """What was measured under this name before, or now."""
        if name not in self.answers:
            started = time.monotonic()
            found = right()
            self.answers[name] = None if found is None else [int(one) for one in found]
            self.seconds += time.monotonic() - started
            files.write_json(self.path, {"seconds": self.seconds, "answers": self.answers})
        return self.answers[name]


def _blocks(dense: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Residual blocks that can be left out; none where no module gives what it takes, or the graph cannot be had."""
    if not _keeps_a_shape(dense, image):
        return ()  # saves the seconds of an export
    try:
        return prune_graph.find_droppable_blocks(to_onnx.export_graph(copy.deepcopy(dense), image))
    except ToolchainError as reason:  # the same network is exported later, in a form that more of them take
        progress.log(f"sensitivity: residual blocks are left out: {reason}")
        return ()


def _keeps_a_shape(dense: nn.Module, image: Tensor) -> bool:
    kept = []

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shapes = [getattr(value, "shape", None) for value in (*inputs[:1], output)]
        kept.append(shapes[0] == shapes[-1])

    model = copy.deepcopy(dense).eval()
    for module in model.modules():
        if next(module.children(), None) is not None:
            module.register_forward_hook(note)
    with torch.inference_mode():
        model(image)
    return any(kept)


def _read(raw: Mapping[str, Any]) -> Sensitivity:
    curves = []
    for one in raw["curves"]:
        points = tuple(
            SensitivityPoint(p["share"], Interval(**p["accuracy"]), Interval(**p["drop"])) for p in one["points"]
        )
        curves.append(SensitivityCurve(**{**one, "points": points, "layers": tuple(one["layers"])}))
    return Sensitivity(Interval(**raw["dense"]), tuple(curves))


def _summary(found: Sensitivity, seconds: float) -> str:
    """What a log should say of it."""
    measured = [curve for curve in found.curves if curve.points]
    late = [curve.name for curve in found.curves if curve.why == "no time"]
    first = f"; {measured[0].name} is the most sensitive" if measured else ""
    rest = f"; no time for {', '.join(late)}" if late else ""
    return (
        f"sensitivity: {len(measured)} parts on {found.dense.samples} validation images in {seconds:.0f} s{first}{rest}"
    )
