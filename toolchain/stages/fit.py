"""fit: dense model, target, budget -> what is cut, decided before any further training is spent.

By a share of the multiply-accumulates, or down to a budget. A latency is met by timing untrained architectures in the
target's runtime: first in the form that the dense model would ship in, then, once a pruned model is known, in its own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from toolchain import (
    amounts,
    discover,
    fitting,
    gradients,
    loader,
    locks,
    machine,
    narrowed,
    progress,
    records,
    rounds,
    surgery,
    widths,
)
from toolchain.architectures import Architectures, Form
from toolchain.errors import ToolchainError
from toolchain.fitting import Fitted
from toolchain.gradients import Gradient
from toolchain.locks import Lock
from toolchain.loop import Trained
from toolchain.stages import place
from toolchain.stages.adapt import Adapted
from toolchain.stages.place import Placed
from toolchain.values import Architecture, Budget, Layer, Placement, PruneSpec, Recipe, Surgery, Target

VERSION = 6
PLAN = "surgery.json"
GRADIENT_BATCH = 64  # images prepared together; gradients are taken one by one
USUAL_RATIO = 0.5  # of the multiply-accumulates, where nobody says how far
# of [prune], without a say in the plan: how to get there, what the model's key holds already, what is only reported
LATER = {"rounds", "sparsity", "sparse_epochs", "sensitivity"}


@dataclass(frozen=True)
class Fit:
    """The plan as data, and the layer sizes it leads from and to."""

    surgery: Surgery
    key: str
    before: Sequence[Layer]
    after: Sequence[Layer]
    fitted: Fitted | None  # None where latency was no matter
    lock: Lock | None = None  # that all this comes from

    @property
    def placements(self) -> Mapping[Architecture, Placement]:
        """Placements that are decided already."""
        if self.lock:
            return self.lock.placements
        own = self.fitted.placement if self.fitted else None
        return {"pruned": own} if own else {}

    @property
    def cuts(self) -> bool:
        """Whether anything is cut at all."""
        return bool(self.surgery.keep or self.surgery.dropped)


def run(
    adapted: Adapted,
    recipe: Recipe,
    target: Target,
    budget: Budget,
    image: Tensor,
    work: Path,
    lock: Lock | None = None,
) -> Fit:
    """Plans the surgery for the recipe's ratio or the budget, widths in multiples of the target's alignment.

    Args:
        adapted: the model to be cut, whose weights rank the channels; its calibration images, for criteria that ask
            what the loss does on them.
        budget: of recipe and target; `latency`, `macs` and `parameters` say how far pruning goes.
        image: one example input, float32 [1, 3, height, width].
        lock: what was decided before; nothing is searched then. Channels are ranked anew where the weights are others.

    Raises:
        ToolchainError: the ratio or budget cannot be reached, both are given, the model cannot be traced, or the lock is
            for another model.
    """
    dense, spec = adapted.trained, recipe.prune
    limits = {what: amounts.read(what, text) for what, text in amounts.given(budget).items()}
    if limits and spec.ratio:
        raise ToolchainError(
            f"prune.ratio = {spec.ratio} and budget.{next(iter(limits))} both say how far to prune; remove one of them"
        )
    searched = bool(limits) and spec.ratio is None
    placed = None
    if lock:
        locks.check(lock, surgery.layers(dense.model, image), (image.shape[2], image.shape[3]))
    elif searched and "latency" in limits:
        placed = place.run(
            dense.model, image, target, recipe.quantize.float_modules, recipe.quantize.search_seconds, work
        )
    room = discover.module("criteria", spec.criterion)
    asked = {name: value for name, value in vars(spec).items() if name not in LATER}
    key = records.digest(
        VERSION,
        dense.key,
        asked,
        limits,
        placed and placed.key,
        *ranked_by(adapted, spec),
        target.alignment,
        lock and lock.key,
    )
    with records.stage(work, "fit", key) as stage:
        if stage.figures is None:
            started = time.monotonic()
            search = _Search(
                adapted, recipe, target, image, room.score, collected(adapted) if room.NEEDS else None, work
            )
            if lock:
                planned, fitted = search.locked(lock), lock.fitted
            elif searched:
                planned, fitted = search.budget(limits, placed, stage.folder)
            else:
                planned, fitted = search.ratio(), None
            records.write_json(stage.folder / PLAN, planned)
            stage = records.finish(stage, started, {"fitted": fitted})
        assert stage.figures is not None
        # read back from its file, so that every run replays a plan and none carries one over in memory
        planned = surgery.read(stage.folder / PLAN)
        fitted = read_fitted(stage.figures["fitted"])
        before = surgery.layers(dense.model, image)
        after = surgery.layers(surgery.apply(dense.model, planned), image)
    work_left = [surgery.macs(sizes) for sizes in (before, after)]
    progress.say(
        f"fit: {work_left[0] / 1e6:.1f} M multiply-accumulates -> {work_left[1] / 1e6:.1f} M "
        f"({work_left[1] / work_left[0]:.0%})"
        + (f", {fitted.latency:.2f}x of the dense latency ({fitted.limit:.2f}x allowed)" if fitted else "")
    )
    return Fit(planned, key, before, after, fitted, lock)


@dataclass(frozen=True)
class _Search:
    """What every way of planning needs."""

    adapted: Adapted
    recipe: Recipe
    target: Target
    image: Tensor
    criterion: Callable[..., Tensor]
    gradients: Mapping[str, Gradient] | None
    work: Path

    def locked(self, lock: Lock) -> Surgery:
        """The plan of a lock; its channels too where it ranked the same weights."""
        if lock.weights == self.adapted.trained.key or lock.surgery == Surgery():
            return lock.surgery
        options = self.options(lock.surgery.dropped)
        return surgery.of(self.adapted.trained.model, options, rounds.same(options, lock.surgery))

    def ratio(self) -> Surgery:
        """A plan that removes a share of the multiply-accumulates."""
        spec = self.recipe.prune
        spec = spec if spec.ratio is not None else replace(spec, ratio=USUAL_RATIO)
        return surgery.plan(
            self.adapted.trained.model, self.image, head=self.adapted.head, spec=spec, alignment=self.target.alignment,
            criterion=self.criterion, gradients=self.gradients,
        )  # fmt: skip

    def options(self, blocks: Sequence[str] = ()) -> widths.Options:
        """What may be cut."""
        return surgery.options(
            self.adapted.trained.model, self.image, head=self.adapted.head, spec=self.recipe.prune,
            alignment=self.target.alignment, criterion=self.criterion, gradients=self.gradients, blocks=blocks,
        )  # fmt: skip

    def budget(
        self, limits: Mapping[amounts.Quantity, amounts.Amount], placed: Placed | None, folder: Path
    ) -> tuple[Surgery, Fitted | None]:
        """A plan that meets every limit."""
        dense = self.adapted.trained.model
        whole = surgery.layers(dense, self.image)
        costs: Mapping[amounts.Quantity, widths.Cost] = {"macs": surgery.macs, "parameters": surgery.parameters}
        exact = [
            (cost, limits[what].share(cost(whole)) * cost(whole)) for what, cost in costs.items() if what in limits
        ]

        def rest(layers: Sequence[Layer]) -> float:
            return max((cost(layers) / limit for cost, limit in exact), default=0.0)

        if placed is None:
            options = self.options()
            return surgery.of(dense, options, widths.narrowed(options, rest, 1.0)), None
        form, dense_ms = shipped(placed, self.target)
        limit = limits["latency"].share(dense_ms)
        if limit >= 1 and not exact:
            return Surgery(), None
        timer = Architectures(dense, self.image, self.target, form, folder)
        options = self.options(narrowed.droppable(timer.graph) if self.recipe.prune.depth else ())
        job = fitting.Job(options, lambda choice: surgery.of(dense, options, choice), limit, rest)
        found, placement = self._latency(job, timer)
        timer.clear()
        return found.plan, Fitted(
            limit, found.latency, found.predicted, found.model.error, found.timed, form.precision, dense_ms, placement
        )

    def _latency(self, job: fitting.Job, timer: Architectures) -> tuple[fitting.Found, Placement | None]:
        """A plan that meets a latency in the pruned model's own form; its placement where that needed other widths."""
        found = fitting.search(job, timer)
        dense, quantize = self.adapted.trained.model, self.recipe.quantize
        pruned = surgery.apply(dense, found.plan)
        placed = place.run(pruned, self.image, self.target, quantize.float_modules, quantize.search_seconds, self.work)
        own, _ = shipped(placed, self.target)
        if own == timer.form:
            return found, None
        final = fitting.again(job, timer.shipped_as(own), found)
        return final, None if final.plan == found.plan else placed.placement


def lock(
    plan: Fit, start: Trained, placed: Mapping[Architecture, Placed], recipe: Recipe, target: Target, budget: Budget,
    image: Tensor, folder: Path,
) -> None:  # fmt: skip
    """Writes down what was decided, so that the same architecture can be made without a search."""
    locks.write(
        folder / locks.file_name(recipe, target),
        Lock(
            schema=locks.SCHEMA, recipe=recipe.name, target=target.name, runtime=target.runtime,
            image_size=(image.shape[2], image.shape[3]), asked=locks.asked(recipe, budget), layers=tuple(plan.before),
            weights=start.key, surgery=plan.surgery, fitted=plan.fitted,
            placements={name: one.placement for name, one in placed.items()}, versions=machine.versions(target),
        ),
    )  # fmt: skip


def read_fitted(row: Mapping[str, Any] | None) -> Fitted | None:
    """A `Fitted` from its JSON."""
    if row is None:
        return None
    return Fitted(**{**row, "placement": row["placement"] and place.read(row["placement"])})


def shipped(placed: Placed, target: Target) -> tuple[Form, float]:
    """The form in which the dense model would be sent to the target, and its milliseconds there.

    Raises:
        ToolchainError: nothing was timed, because this machine cannot or the recipe says so.
    """
    floating, best = placed.fastest_float, placed.best
    if floating is None or best is None:
        raise ToolchainError(
            f"a latency budget needs the target {target.name} to be timed; this machine cannot, or search_seconds is 0: "
            "give [prune] ratio or a budget of macs instead"
        )
    if floating.speedup > best.speedup:
        return Form(floating.precision, Placement()), floating.latency_ms
    return Form("int8", placed.placement), best.latency_ms


def ranked_by(adapted: Adapted, spec: PruneSpec) -> tuple[str, str]:
    """What the ranking of channels depends on beside the weights: the criterion's code, and the images it looks at."""
    room = discover.module("criteria", spec.criterion)
    seen = adapted.data.calibration_digest if room.NEEDS else ""
    return records.sha256_file(Path(str(room.__file__))), seen  # an edited criterion ranks anew


def collected(adapted: Adapted) -> Mapping[str, Gradient]:
    """Gradients of the model on the calibration images, which are training images and keep validation out of the choice."""
    data = adapted.data
    batches = loader.batches(data.calibration_images, data.preprocess, GRADIENT_BATCH)
    return gradients.collect(adapted.trained.model, list(batches))
