"""The whole job on one screen: the stages in order, each resumable, each cached by what decides its result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Recipe
from toolchain.config.target import Target
from toolchain.core import files, registry
from toolchain.core.types import Architecture
from toolchain.data import prepare
from toolchain.data.image_folder import Split
from toolchain.deploy import bundle, packaged_forms
from toolchain.export import export_variants
from toolchain.gates import ship_decision
from toolchain.measure import accuracy as verify
from toolchain.measure import latency, machine
from toolchain.models import build as models
from toolchain.models import profile
from toolchain.pruning import options, prune, recover, sparsify
from toolchain.quantization import quantize
from toolchain.report import assemble, write
from toolchain.report.sections import reuse
from toolchain.search import accuracy_control, place, pruning_plan, sensitivity
from toolchain.search import lock as lock_module
from toolchain.search import lock as locks
from toolchain.selection import advise, select_model
from toolchain.training import finetune, input_size


def build(
    recipe: Recipe, target: Target, domain: Domain, out: Path, *, lock: Path | None = None, beside: Path | None = None
) -> dict[str, Any]:
    """Makes a bundle for `target` in `out/<recipe>/<target>`; returns the report.

    A report whose `shipped` is None missed a budget: it is written all the same, the bundle is not.

    Args:
        lock: a file that says what is cut and what runs in integers.
        beside: the recipe's folder, whose lock is taken where none is named and it is for the same settings.

    Raises:
        ToolchainError: wrong input or environment; finished stages stay in `out/work` and are not done again.
    """
    budget = ship_decision.merged(recipe.budget, target.budget)
    folder, work, seconds = out / recipe.name / target.name, out / "work", dict[str, float]()
    decided = locks.find(lock, beside, recipe, target, budget)
    pruning_plan.limits_of(recipe, budget, locked=decided is not None)
    registry.module("runtimes", target.runtime).fingerprint()  # what is not installed is said before training
    machine.runtime(target)  # and a board that is not there
    with files.locked(folder, wait=False):
        torch.set_flush_denormal(True)
        with _timed(seconds, "select"):
            recipe, ranked = select_model.settled(recipe, domain, target, budget, out)
        with _timed(seconds, "data"):
            data, joins = prepare.run(recipe, domain, out / "data")
            image = data.example
        with _timed(seconds, "advise"):
            recipe, advice = advise.settled(recipe, data, work, target)
            reuse.tell(advice)
        with _timed(seconds, "adapt"):
            # what does not suit the model is said before it is trained
            layers = profile.layers(models.sketch(recipe.model, len(data.classes), image, recipe.reuse), image)
            options.known(recipe.prune.protect, layers)
            decided = locks.suited(decided, layers, data.preprocess.image_size, named=lock is not None)
            adapted = finetune.run(recipe, domain.kind, data, joins, work)
            dense = adapted.trained
        with _timed(seconds, "sparsify"):
            start = sparsify.run(adapted, recipe, target, image, work)
        with _timed(seconds, "fit"):
            at = cache(lambda size: input_size.run(adapted, size, out / "data"))
            plan = pruning_plan.run(replace(adapted, trained=start), recipe, target, budget, image, work, decided, at)
            view = at(plan.resized) if plan.resized else adapted  # as the pruned model sees it
        with _timed(seconds, "sensitivity"):
            curves = sensitivity.run(adapted, plan, recipe, target, image, work)
        with _timed(seconds, "place"):  # before any round of pruning: the architecture is settled
            networks: dict[Architecture, tuple[nn.Module, Tensor]] = {"dense": (dense.model, image)}
            networks |= {"pruned": (prune.at_once(start, plan).model, view.data.example)} if plan.changes else {}
            placed = place.families(networks, plan.placements, recipe, target, work)
            lock_module.lock(plan, start, placed, recipe, target, budget, image, folder)
        with _timed(seconds, "prune"):
            pruned = prune.run(start, plan, view, recipe, target, view.data.example, work)
        with _timed(seconds, "recover"):
            small = recover.run(pruned, view, recipe, work)
        with _timed(seconds, "quantize"):
            families = quantize.families(adapted, view, small, placed, recipe, target, work)
            families, controlled = accuracy_control.run(families, placed, budget, target, adapted, work)
        with _timed(seconds, "export"):
            built = export_variants.variants(families, target, work)
            variants = [one.variant for one in built]
        with _timed(seconds, "verify"):
            pictures = {family.name: family.data for family in families}
            served = {name: cache(partial(verify.served_pixels, own)) for name, own in pictures.items()}

            def answered(one: export_variants.Built, split: Split) -> verify.Answers:
                name = one.variant.family
                return verify.run(one, target, pictures[name], split, served[name], work)

            choosing = [answered(one, "val") for one in built]
            answers = [answered(one, "test") for one in built]
            validation = verify.compare(variants, choosing, data.splits["val"].labels, target)
            accuracy = verify.compare(variants, answers, data.splits["test"].labels, target)
        with _timed(seconds, "bench"):
            measured, warnings = latency.run(variants, target, recipe.seed, work)
        pinned = decided.ships if decided else None
        judged = ship_decision.run(variants, validation, accuracy, measured, budget, plan.fitted, plan.dense, pinned)
        findings = assemble.Findings(
            recipe=recipe, target=target, domain=domain, ranked=ranked, data=data, advice=advice, adapted=adapted,
            sparse=start, plan=plan, curves=curves,
            placed=placed, pruned=pruned, families=families, controlled=controlled, variants=variants,
            accuracy=accuracy, measured=measured, judged=judged, seconds=seconds, warnings=warnings,
        )  # fmt: skip
        if judged.shipped is None:
            bundle.remove(folder)  # an older one must not look like the result of this run
        else:
            number = next(i for i, one in enumerate(variants) if one.name == judged.shipped)
            ships, own = variants[number], pictures[variants[number].family]
            seen: dict[Split, verify.Answers] = {"val": choosing[number], "test": answers[number]}
            forms = packaged_forms.run(ships, seen["test"], target, own, work)
            contents = bundle.Contents(surgery=pruned.surgery, facts=assemble.facts(findings), package=forms)
            bundle.run(ships, seen, contents, own, folder)
            locks.settle(folder / locks.file_name(recipe, target), ships.precision)
        written = assemble.report(findings)
        files.write_json(folder / "measurements.json", assemble.measurements(findings))
        write.write(written, folder)
        return written


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - started, 1)
