"""Measure the sensitivity to pruning: validation accuracy against the pruned share of each pruning group, cut alone.

The least important channels go first, and nothing is trained afterwards: a curve that falls early is a group that the
network needs most. The curves explain the plan and do not change it, so the analysis uses part of the validation images
and ends when its time is up.

Source: Li et al., arXiv 1608.08710; Han et al., arXiv 1506.02626.
"""

import time

from toolchain.config.job import Job
from toolchain.core import files, progress, stage_cache
from toolchain.search import sensitivity_survey
from toolchain.search.pruning_plan import PruningPlan
from toolchain.search.sensitivity_curves import Sensitivity, read_sensitivity
from toolchain.search.sensitivity_survey import SensitivitySurvey
from toolchain.training.finetune import FinetunedModel

VERSION = 1
POINTS_FILE = "points.json"  # measured so far; removed at the end


def run(job: Job, finetuned: FinetunedModel, plan: PruningPlan) -> Sensitivity | None:
    """Return how much accuracy each pruning group and each residual block costs; None where nothing is removed.

    Args:
        job: its recipe switches the analysis on.
        finetuned: the dense model and its dataset, of which only validation images are used.
        plan: the widths that it chose are measured too, and it gives the share that is removed of each group.
    """
    if not (job.recipe.prune.sensitivity and plan.removes_anything):
        return None
    # the plan's key covers model, images, criterion, its settings and the alignment
    key = files.digest(
        VERSION, plan.key, plan.surgery, sensitivity_survey.MAX_IMAGES, sensitivity_survey.MAX_SECONDS,
        sensitivity_survey.PRUNED_SHARES, sensitivity_survey.MIN_SHARE_GAP,
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "sensitivity", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            points_file = stage.folder / POINTS_FILE
            sensitivity = SensitivitySurvey(job, finetuned, plan.surgery).measure(points_file)
            stage = stage_cache.finish(stage, started, {"found": sensitivity})
            points_file.unlink(missing_ok=True)
        assert stage.record is not None
    sensitivity = read_sensitivity(stage.record["found"])
    progress.log(_describe(sensitivity, stage.seconds))
    return sensitivity


def _describe(sensitivity: Sensitivity, seconds: float) -> str:
    measured = [curve for curve in sensitivity.curves if curve.points]
    unmeasured = [curve.name for curve in sensitivity.curves if curve.why == "no time"]
    most_sensitive = f"; {measured[0].name} is the most sensitive" if measured else ""
    no_time = f"; no time for {', '.join(unmeasured)}" if unmeasured else ""
    return (
        f"sensitivity: {len(measured)} groups and blocks on {sensitivity.dense.samples} validation images in "
        f"{seconds:.0f} s{most_sensitive}{no_time}"
    )
