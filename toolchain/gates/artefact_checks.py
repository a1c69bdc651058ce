"""Checks that hold for every artefact, whatever the budget: it computes what was trained, and it runs in int8.

The source model is torch's, or the graph of a model that came as an ONNX file.

An artefact is refused for what is wrong with it, not for a few images: differences are judged in quantization steps, changed
predictions only where the steps do not explain them, and accuracy only in the direction that hurts. Where this many images
cannot show a limit to be kept, the outcome is "cannot tell".
"""

from collections.abc import Mapping

from toolchain.core import statistics
from toolchain.core.types import IntegerCoverage, Precision
from toolchain.export.export_variants import Variant
from toolchain.gates.verdict import Verdict, judge_interval
from toolchain.measure.accuracy import VariantAccuracy
from toolchain.measure.torch_parity import LogitDifference, Parity

# sound artefacts had up to 2.3 steps in int8 and 10 in bf16; a scale that is 15 % off in one layer gives 5 or more
# (docs/results.md)
MAX_RMS_STEPS: Mapping[Precision, float] = {"f32": 0.5, "int8": 4.0, "bf16": 25.0}
MAX_UNEXPLAINED_SHARE = 0.015  # of images whose prediction changes by more than rounding explains
# rounding to 8 bits of mantissa changes the model as quantization does; the budgets bound what that costs
MAX_ACCURACY_GAP: Mapping[Precision, float] = {"f32": 0.003, "int8": 0.003, "bf16": 0.01}  # torch to artefact


def judge(variant: Variant, quality: VariantAccuracy) -> list[Verdict]:
    """Return the verdicts on one artefact.

    Args:
        variant: the artefact.
        quality: its parity and coverage on one split.
    """
    parity, limit = quality.parity, MAX_RMS_STEPS[variant.precision]
    verdicts = [_judge_error("logit_error", parity.artefact, limit, "from the source model")]
    if parity.runtime is not None:
        verdicts.append(_judge_error("runtime_error", parity.runtime, limit, "optimized against unoptimized graph"))
    verdicts += [_judge_agreement(parity), _judge_gap(parity, MAX_ACCURACY_GAP[variant.precision])]
    if variant.precision == "int8":
        verdicts.append(_judge_coverage(quality.coverage))
    return verdicts


def _judge_error(check: str, difference: LogitDifference, limit: float, between: str) -> Verdict:
    rms = difference.rms_steps
    why = (
        f"logits differ by {rms.estimate:.2f} quantization steps {between} (root mean square, 95 % interval {rms.low:.2f} to "
        f"{rms.high:.2f}, {rms.samples} images)"
    )
    return Verdict(check=check, outcome=judge_interval(rms, limit), measured=rms.estimate, limit=limit, why=why)


def _judge_agreement(parity: Parity) -> Verdict:
    """Judge the share of images whose prediction rounding does not change; with none that it does not explain, it passes."""
    changed, unexplained = parity.artefact.changed_images, parity.artefact.unexplained_images
    if parity.runtime is not None:
        changed, unexplained = (
            changed + parity.runtime.changed_images,
            unexplained + parity.runtime.unexplained_images,
        )
    share = statistics.share(min(unexplained, parity.images), parity.images)
    outcome = judge_interval(share, MAX_UNEXPLAINED_SHARE) if unexplained else "pass"
    why = (
        f"{changed} of {parity.images} predictions change, {unexplained} of them by more than quantization steps explain; "
        f"same class as the source model on {parity.top1_agreement:.2%}"
    )
    if outcome == "cannot_tell":
        needed = statistics.images_for_share(share.estimate, MAX_UNEXPLAINED_SHARE)
        why += f"; about {needed:,} images would decide"
    return Verdict(
        check="unexplained_changes", outcome=outcome, measured=share.estimate, limit=MAX_UNEXPLAINED_SHARE, why=why
    )


def _judge_gap(parity: Parity, limit: float) -> Verdict:
    """Fail only an accuracy that is lower than the torch model's, and by more than chance."""
    drop = parity.gap
    outcome = judge_interval(drop, limit) if drop.estimate > 0 else "pass"
    why = (
        f"artefact minus source model, 95 % interval {-100 * drop.high:+.2f} to {-100 * drop.low:+.2f} points, "
        f"{drop.samples} images"
    )
    if outcome == "cannot_tell":
        changed = parity.artefact.changed_images + (parity.runtime.changed_images if parity.runtime else 0)
        needed = statistics.images_needed(limit, max(changed / parity.images, limit))
        why += f"; about {needed:,} images would decide"
    return Verdict(check="accuracy_gap", outcome=outcome, measured=parity.accuracy_gap, limit=-limit, why=why)


def _judge_coverage(coverage: IntegerCoverage | None) -> Verdict:
    if coverage is None:
        return Verdict(
            check="integer_coverage", outcome="not_measured", measured=None, limit=1.0,
            why="this machine does not run the target's instructions",
        )  # fmt: skip
    names = f"; in float: {', '.join(coverage.float_ops)}" if coverage.float_ops else ""
    return Verdict(
        check="integer_coverage", outcome="pass" if coverage.integer >= coverage.planned else "fail",
        measured=coverage.integer / max(coverage.planned, 1), limit=1.0,
        why=f"{coverage.integer} of {coverage.planned} planned layers run in int8, {coverage.total} in all{names}",
    )  # fmt: skip
