"""Which layers can lose channels, which cannot and why, and what removing half of the multiply-accumulates would leave.

Tracing says which channels belong together. A forward pass of the pruned model says whether the code keeps up: a channel
count written into `forward` is only found by running it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from toolchain.config.recipe import PruneSpec
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models import profile
from toolchain.models.profile import Layer
from toolchain.pruning import groups, importance, surgery, width_search
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.groups import PruningGroup, TracedChannels
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace
from toolchain.selection.check_model import user_lines
from toolchain.selection.check_model.finding import Finding
from toolchain.selection.check_model.known_traps import list_names
from toolchain.selection.check_model.recorded_forward import RecordedForward
from toolchain.selection.check_model.subject import Subject

# functions that move channels to where the tracer loses them
REARRANGING = {
    "view",
    "reshape",
    "permute",
    "transpose",
    "chunk",
    "split",
    "unbind",
    "pixel_shuffle",
    "pixel_unshuffle",
    "roll",
}
SECONDS_TO_TRACE = 10.0  # of processor time
HALF = 0.5  # of the multiply-accumulates: the size that is timed
FAILED_TRIAL = "forward fails once it is narrower"


@dataclass(frozen=True, kw_only=True)
class Prunability:
    """What can be pruned."""

    layers: tuple[Layer, ...]  # in running order, one per call
    groups: tuple[PruningGroup, ...]
    obstacles: Mapping[str, str]  # by layer: why its output channels have to stay
    most_share: float  # of the multiply-accumulates that can be removed
    half: Surgery | None  # the plan for HALF, or for the most that can be removed; None: nothing can
    findings: tuple[Finding, ...]

    def is_prunable(self, layer: str) -> bool:
        """Return whether channels on one side of a layer can be removed."""
        return any(layer == coupled.module_name for group in self.groups for coupled in group.coupled_layers)


def examine(subject: Subject, alignment: int, recorded: RecordedForward | None = None) -> Prunability:
    """Find what can be pruned, and try it.

    Args:
        subject: a model that runs.
        alignment: pruned widths are multiples of it.
        recorded: a forward pass, whose lines explain what cannot be traced.
    """
    layers = profile.measure_layers(subject.model, subject.image)
    traced = groups.trace_channels(subject.model, subject.image, subject.head, seconds=SECONDS_TO_TRACE)
    obstacles = {layer: obstacle.reason for obstacle in traced.obstacles for layer in obstacle.layers}
    findings = list[Finding]()
    if traced.failures:
        findings.append(_describe_failed_trace(traced, recorded))
    safe = traced.groups if subject.head else _without_outputs(subject, traced.groups)
    safe, failures = _try_groups(subject, safe, alignment)
    findings += failures
    obstacles |= {name: f"{FAILED_TRIAL}: {f.line or f.text}" for f in failures for name in f.modules}
    space = _search_space(safe, layers, alignment)
    total, half = profile.total_macs(layers), None
    narrowest = profile.total_macs(space.remaining_layers(space.narrowest))
    most_share = 1 - narrowest / total if total else 0.0
    if most_share > 0:
        limit = max((1 - HALF) * total, narrowest)
        half = surgery.build(subject.model, space, width_search.search(space, profile.total_macs, limit))
    prunability = Prunability(
        layers=layers, groups=safe, obstacles=obstacles, most_share=most_share, half=half, findings=()
    )
    return dataclasses.replace(prunability, findings=(_summarize(prunability, total), *findings))


def _summarize(prunability: Prunability, total: float) -> Finding:
    inside = [layer for layer in prunability.layers if prunability.is_prunable(layer.name)]
    share = profile.total_macs(inside) / total if total else 0.0
    if not prunability.groups or prunability.most_share == 0:
        why = next(iter(prunability.obstacles.values()), "no group of channels is wider than the target's alignment")
        return Finding(
            check="prunable", status="warning", text=f"No channels can be pruned: {why}.",
            action="The pipeline can still quantize it: export with --ratio 0.",
        )  # fmt: skip
    text = (
        f"{len(dict.fromkeys(layer.name for layer in inside))} of {len({layer.name for layer in prunability.layers})} layers "
        f"can be pruned, with {share:.0%} of the multiply-accumulates; at most {prunability.most_share:.0%} can be removed."
    )
    return Finding(check="prunable", status="pass", text=text)


def _describe_failed_trace(traced: TracedChannels, recorded: RecordedForward | None) -> Finding:
    """Return which modules block tracing, with the line of the first that rearranges channels."""
    failed = [part for part, _ in traced.failures]
    innermost = [
        part
        for part in failed
        if not any(other != part and (other.startswith(f"{part}.") or not part) for other in failed)
    ]
    rearranging = [
        call for call in (recorded.calls if recorded else ())
        if call.function in REARRANGING and any(width_search.is_inside(call.module, part) or not part for part in innermost)
    ]  # fmt: skip
    line = next((call.line for call in rearranging if call.line), "") or user_lines.find_line(traced.failures[-1][1])
    named = list_names([part for part in innermost if part])
    text = f"Channels cannot be followed through {named or 'the model'}: {_explain(traced.failures[-1][1], bool(rearranging))}."
    if traced.groups:
        text += " The rest is traced in parts, and channels that enter or leave a part stay."
    return Finding(
        check="pruning_trace", status="warning", text=text, line=line, modules=tuple(part for part in innermost if part),
        action="Nothing, if that is enough; else move the line into a module of its own, called once with one tensor.",
    )  # fmt: skip


def _explain(reason: Exception, rearranges: bool) -> str:
    """Return why tracing failed; the tracer's own message says something only where it is the toolchain's."""
    if isinstance(reason, ToolchainError) or not rearranges:
        return first_line(reason)
    return f"it rearranges them ({type(reason).__name__} in the tracer)"


def _without_outputs(subject: Subject, candidates: Sequence[PruningGroup]) -> tuple[PruningGroup, ...]:
    """Return the groups that leave the shape of the model's output as it is; for a model whose head is not known."""
    readers = {group: any(layer.role == "in" for layer in group.coupled_layers) for group in candidates}
    return tuple(group for group, is_read in readers.items() if is_read)


def _try_groups(
    subject: Subject, candidates: Sequence[PruningGroup], alignment: int
) -> tuple[tuple[PruningGroup, ...], list[Finding]]:
    """Run the model with all groups narrowed, and where that fails with each alone; return those that work."""
    if not candidates or _try_narrowed(subject, candidates, alignment) is None:
        return tuple(candidates), []
    safe, failures = list[PruningGroup](), dict[str, list[tuple[PruningGroup, Exception]]]()
    for group in candidates:
        reason = _try_narrowed(subject, [group], alignment)
        if reason is None:
            safe.append(group)
        else:
            failures.setdefault(user_lines.find_line(reason), []).append((group, reason))
    findings = [_describe_failed_trial(line, entries) for line, entries in failures.items()]
    if safe and (reason := _try_narrowed(subject, safe, alignment)) is not None:
        findings.append(_describe_failed_trial(user_lines.find_line(reason), [(group, reason) for group in safe]))
        safe = []
    return tuple(safe), findings


def _try_narrowed(subject: Subject, candidates: Sequence[PruningGroup], alignment: int) -> Exception | None:
    """Return the error of a forward pass with the groups at their narrowest; None where it gives the same shape."""
    layers = profile.measure_layers(subject.model, subject.image) if not candidates else ()
    space = _search_space(candidates, layers, alignment)
    if space.narrowest == space.unpruned:
        return None
    try:
        narrowed = surgery.apply(subject.model, surgery.build(subject.model, space, space.narrowest)).eval()
        with torch.no_grad():
            output = narrowed(subject.image)
            expected = subject.model(subject.image)
    except Exception as reason:  # ToolchainError of the surgery, or whatever `forward` raises
        return reason
    same = getattr(output, "shape", None) == getattr(expected, "shape", None)
    return None if same else ToolchainError("the output changes its shape")


def _describe_failed_trial(line: str, entries: Sequence[tuple[PruningGroup, Exception]]) -> Finding:
    writers = dict.fromkeys(
        layer.module_name for group, _ in entries for layer in group.coupled_layers if layer.role == "out" and layer.layer_type != "norm"
    )  # fmt: skip
    names = tuple(writers)
    quoted = ", ".join(f'"{name}"' for name in names[:8]) + (", ..." if len(names) > 8 else "")
    return Finding(
        check="channel_arithmetic", status="warning", line=line, modules=names,
        text=f"forward fails once {list_names(names)} {'is' if len(names) == 1 else 'are'} narrower "
        f"({first_line(entries[0][1])}): a channel count is written into it.",
        action=f"Derive the count from the tensor (x.flatten(1), x.shape[1]), or keep these layers: [prune] protect = [{quoted}].",
    )  # fmt: skip


def _search_space(candidates: Sequence[PruningGroup], layers: Sequence[Layer], alignment: int) -> SearchSpace:
    """Return the widths that may be chosen, with channels ranked by magnitude, which needs no images."""
    spec = PruneSpec()
    shares = importance.compute_shares(candidates, magnitude.score, spec.ranking)
    orders = [torch.argsort(share, stable=True) for share in shares]
    return SearchSpace(
        full_layers=tuple(layers), groups=tuple(candidates), channel_order=tuple(orders), droppable_blocks=(),
        sorted_importance=tuple(share[order] for share, order in zip(shares, orders, strict=True)), alignment=alignment,
        max_pruned_share=spec.max_share,
    )  # fmt: skip
