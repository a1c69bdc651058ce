"""The whole job on one screen: the steps in order, each cached by what decides its result, each resumable."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from toolchain.config import model_reference
from toolchain.config.job import Job
from toolchain.config.shortlist import is_auto
from toolchain.core import cache_cleanup, files, progress
from toolchain.core.errors import ToolchainError
from toolchain.data import prepare
from toolchain.deploy import bundle
from toolchain.export import export_variants, quantize_onnx, read_onnx
from toolchain.export.runtime import load_runtime
from toolchain.gates import data_source, ship_decision
from toolchain.measure import accuracy, latency, machine
from toolchain.models import build, class_order, published_pixels
from toolchain.pruning import prune, recover, sparsify
from toolchain.quantization import quantize
from toolchain.report import onnx_results, write
from toolchain.report.pages import adapt as adapt_page
from toolchain.report.run_results import RunResults
from toolchain.report.sections import reuse_depths
from toolchain.search import accuracy_control, lock_file, place, pruning_plan, pruning_sensitivity, search_pruning
from toolchain.search.pruning_plan import Lock
from toolchain.selection import reuse_advice, select_model
from toolchain.training import finetune, input_size, pseudo_labels

STEPS = {  # of export, in order: the key in the report's `seconds`, and what is shown
    "select": "choose the model",
    "data": "decode the images",
    "advise": "choose the layers to reuse",
    "adapt": "fine-tune",
    "sparsify": "train sparse",
    "fit": "search what to prune",
    "sensitivity": "measure sensitivity",
    "place": "search the Q/DQ placement",
    "prune": "prune",
    "recover": "recover by distillation",
    "quantize": "quantize",
    "export": "export",
    "verify": "verify",
    "bench": "measure latency",
}
ONNX_STEPS = {  # of export_onnx_file
    "data": STEPS["data"],
    "read": "read the ONNX file",
    **{name: STEPS[name] for name in ("place", "quantize", "export", "verify", "bench")},
}


def export(job: Job) -> dict[str, Any]:
    """Make a bundle and a report in the job's folder; return the report.

    A report whose `shipped` is None missed a budget: it is written all the same, the bundle is not.

    Raises:
        ToolchainError: wrong input or environment; finished steps stay in the stage cache and are not done again.
    """
    if model_reference.is_onnx_file(job.recipe.model.name):
        return export_onnx_file(job)
    decided, seconds = check_environment(job), dict[str, float]()
    step = partial(_run_step, STEPS, seconds)
    with files.lock_folder(job.folder, wait=False), cache_cleanup.note_run(job.out, job.folder):
        torch.set_flush_denormal(True)
        with step("select"):
            job, ranking = select_model.resolve_auto_model(job)
            job = class_order.resolve(published_pixels.resolve(job))
        with step("data"):
            data, joined = prepare.run(job)
            origin = data_source.describe(job.domain, job.images)
        with step("advise"):
            job, advice = reuse_advice.resolve_auto_reuse(job, data)
            reuse_depths.announce(advice)
        with step("adapt"):
            decided = search_pruning.check_model(job, data, decided)
            data, dense = pseudo_labels.run(job, data, finetune.run(job, data, joined))
        with step("sparsify"):
            ranked = sparsify.run(job, dense)
        with step("fit"):
            at_size = partial(input_size.resize_inputs, dense, cache=job.images)
            plan = search_pruning.run(job, replace(dense, trained=ranked), decided, at_size)
            view = at_size(plan.reduced_image_size or data.preprocess.image_size)
        with step("sensitivity"):
            curves = pruning_sensitivity.run(job, dense, plan)
        with step("place"):
            placed = place.run(
                job, search_pruning.untrained_networks(plan, dense, ranked, view), plan.decided_placements
            )
            lock_file.record_plan(job, plan, ranked, placed, data.preprocess.image_size)
        with step("prune"):
            pruned = prune.run(job, ranked, plan.surgery, view)
        with step("recover"):
            small = recover.run(job, pruned, view)
        with step("quantize"):
            networks = quantize.run(job, dense, view, small, placed)
            networks, control = accuracy_control.run(job, networks, placed, dense)
        with step("export"):
            exported = export_variants.run(job, networks, machine.available_precisions(job.target))
            variants = [one.variant for one in exported]
        with step("verify"):
            verified = accuracy.run(job, exported, networks)
        with step("bench"):
            measured, warnings = latency.run(job, variants)
        decision = ship_decision.run(job, variants, verified, measured, plan)
        findings = RunResults(
            job=job, ranking=ranking, dataset=data, data_source=origin, advice=advice, dense=dense, ranked=ranked, plan=plan, sensitivity=curves,
            placements=placed, pruned=pruned, networks=networks, control=control, variants=variants, verified=verified,
            measured=measured, decision=decision, warnings=warnings, step_seconds=seconds,
            notes=pseudo_labels.list_notes(job, dense),
        )  # fmt: skip
        bundle.run(job, findings.shipment())
        return write.run(job, findings)


def export_onnx_file(job: Job) -> dict[str, Any]:
    """Make a bundle and a report as `export` does of a model that is only an ONNX file: nothing is trained or pruned.

    Raises:
        ToolchainError: wrong input or environment; finished steps stay in the stage cache and are not done again.
    """
    job = published_pixels.resolve(read_onnx.prepare_job(job))
    decided, seconds = check_environment(job), dict[str, float]()
    step = partial(_run_step, ONNX_STEPS, seconds)
    with files.lock_folder(job.folder, wait=False), cache_cleanup.note_run(job.out, job.folder):
        with step("data"):
            data, _ = prepare.run(job)
            origin = data_source.describe(job.domain, job.images)
        with step("read"):
            data, dense = pseudo_labels.run(job, data, read_onnx.run(job, data))
            plan = pruning_plan.keep_everything(decided)
        with step("place"):
            placed = place.run(job, {"dense": (dense.trained.model, data.example_input)}, plan.decided_placements)
            lock_file.record_plan(job, plan, dense.trained, placed, data.preprocess.image_size)
        with step("quantize"):
            networks = quantize_onnx.run(job, dense, placed)
        with step("export"):
            exported = export_variants.run(job, networks, machine.available_precisions(job.target))
            variants = [one.variant for one in exported]
        with step("verify"):
            verified = accuracy.run(job, exported, networks)
        with step("bench"):
            measured, warnings = latency.run(job, variants)
        decision = ship_decision.run(job, variants, verified, measured, plan)
        findings = RunResults(
            job=job, ranking=None, dataset=data, data_source=origin, advice=None, dense=dense, ranked=dense.trained, plan=plan,
            sensitivity=None, placements=placed, pruned=prune.keep_whole(dense.trained), networks=networks, control=None,
            variants=variants, verified=verified, measured=measured, decision=decision, step_seconds=seconds,
            warnings=[*read_onnx.list_warnings(dense, job.recipe), *warnings],
            notes=[*pseudo_labels.list_notes(job, dense), *onnx_results.list_notes(dense, verified)],
        )  # fmt: skip
        bundle.run(job, findings.shipment())
        return write.run(job, findings)


def adapt(job: Job) -> dict[str, Any]:
    """Fine-tune only, for every seed; write and return `out/<recipe>/adapt.json`. The job's target decides nothing.

    Raises:
        ToolchainError: as the steps; or the recipe leaves the choice of a model open, which takes a target.
    """
    recipe = job.recipe
    if model_reference.is_onnx_file(recipe.model.name):
        raise ToolchainError(
            f"model.name = {recipe.model.name!r} is an ONNX file, which cannot be fine-tuned; `toolchain export` quantizes it as it "
            "is. Give a torch module to fine-tune: net.py:build, or a name of torchvision or timm"
        )
    if is_auto(recipe.model.name):
        raise ToolchainError(
            f"model.name = {recipe.model.name!r} chooses a model by latency on a target, which only `export` has; name a model"
        )
    folder = job.out / recipe.name
    with files.lock_folder(folder, wait=False), cache_cleanup.note_run(job.out, folder):
        torch.set_flush_denormal(True)
        job = published_pixels.resolve(job)
        data, joined = prepare.run(job)
        job, advice = reuse_advice.resolve_auto_reuse(job, data, timed=False)
        reuse_depths.announce(advice)
        build.build_for_image_size(
            job.recipe.model, len(data.classes), data.example_input, job.recipe.reuse
        )  # what does not fit is said first
        return adapt_page.write(job, finetune.run(job, data, joined))


def check_environment(job: Job) -> Lock | None:
    """Return the lock that is to be replayed; say what is missing or contradicts itself before anything is trained.

    Raises:
        ToolchainError: the recipe contradicts its budget, the runtime is not installed, or the board does not answer.
    """
    decided = lock_file.find(job)
    search_pruning.read_limits(job.recipe, job.budget, locked=decided is not None)
    load_runtime(job.target.runtime).fingerprint()
    machine.runtime_version(job.target)
    return decided


@contextmanager
def _run_step(steps: Mapping[str, str], seconds: dict[str, float], step: str) -> Iterator[None]:
    """Announce a step of a pipeline, and keep how long it takes."""
    progress.log(f"step {list(steps).index(step) + 1} of {len(steps)}: {steps[step]}")
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 1)
