"""The result of `toolchain check-model` as one HTML page: what can be done with the model, where it cannot, how fast it is.

No scripts and nothing fetched.
"""

from collections.abc import Sequence
from html import escape

from toolchain.report import html_page, number_format, svg
from toolchain.report.pages import model_checks_text
from toolchain.report.pages.model_checks_text import ABILITIES, Ability, divide_into_blocks
from toolchain.selection.check_model.finding import Finding, ModelCheck, TimedForm, share_of_macs

PAGE_BLOCKS = 24
ROW_HEIGHT = 17  # of a bar, in pixels
STATUS_SIGNS = {"pass": "✓", "warning": "!", "blocks": "✗", "not_measured": "–"}
COLOURS: dict[Ability, str] = {
    "prunable, int8": svg.MAIN, "int8 only": svg.COOL, "prunable only": svg.WARM, "neither": svg.MUTED, "not known": svg.RULE,
}  # fmt: skip
LABELS: dict[Ability, str] = {
    "prunable, int8": "can be pruned, runs in int8", "int8 only": "runs in int8, cannot be pruned",
    "prunable only": "can be pruned, stays in float", "neither": "neither", "not known": "not known",
}  # fmt: skip

EXTRA_CSS = """
ul.findings { list-style: none; margin: 1.2rem 0 0; padding: 0; }
.findings > li { display: grid; grid-template-columns: 11rem 1fr; gap: .8rem; padding: .6rem 0;
  border-bottom: 1px solid var(--rule); break-inside: avoid; }
.findings p { max-width: none; margin: 0; overflow-wrap: anywhere; }
.findings p + p { margin-top: .25rem; }
.findings b { font-weight: 600; }
.findings code { font: .8125rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--card);
  padding: .1rem .4rem; border-radius: 4px; }
.findings small { display: block; color: var(--muted); font-size: .8125rem; }
.warning { color: var(--doubt); } .blocks { color: var(--fail); }
.action::before { content: "→ "; color: var(--main); }
@media (max-width: 30rem) { .findings > li { grid-template-columns: 1fr; gap: .2rem; } }
"""

BLOCKS_CAPTION = (
    "Multiply-accumulates of each block, by what the toolchain can do with its layers. A layer can be pruned where channels on "
    "one of its sides can be removed; it runs in int8 where the target's runtime executes it in int8."
)
FORMS_CAPTION = (
    "Median latency with its 95 % interval, from short paired rounds in fresh processes; untrained weights, since latency does "
    "not depend on them. Pruned: to half of the multiply-accumulates, or as far as the model allows."
)


def render_html(check: ModelCheck) -> str:
    """Return the whole page."""
    troubles = [finding for finding in check.findings if finding.status in {"blocks", "warning"}]
    others = [finding for finding in check.findings if finding.status not in {"blocks", "warning"}]
    parts = (
        _head(check),
        html_page.section("What to do", _list_findings(troubles)) if troubles else "",
        html_page.section(
            "The network, block by block",
            html_page.plot(plot_blocks(check), BLOCKS_CAPTION),
        ) if check.layers else "",
        html_page.section(
            "Latency on the target",
            html_page.plot(plot_latency(check.forms), FORMS_CAPTION) if any(f.latency_ms for f in check.forms) else "",
            html_page.render_table(model_checks_text.tabulate_forms(check)),
        ) if any(form.latency_ms for form in check.forms) else "",
        html_page.section("What passes", _list_findings(others)) if others else "",
        html_page.section(
            "Layers that keep their channels or stay in float",
            html_page.render_table(model_checks_text.tabulate_kept_layers(check)),
        ),
        html_page.hint(_describe_machine(check)),
    )  # fmt: skip
    return html_page.render_page(f"{check.name} on {check.target}: model check", parts, EXTRA_CSS)


def _head(check: ModelCheck) -> str:
    state = "fails" if check.blocking else "ships"
    return (
        f'<p class="lead">{escape(model_checks_text.title(check))}</p>'
        f'<h1 class="{state}">{escape(model_checks_text.describe_outcome(check))}</h1>'
        + html_page.render_key_results(_list_key_results(check))
    )


def _list_key_results(check: ModelCheck) -> list[tuple[str, str, Sequence[str]]]:
    prunable, int8 = share_of_macs(check.layers, "prunable"), share_of_macs(check.layers, "int8")
    forms = {form.name: form for form in check.forms}
    results: list[tuple[str, str, Sequence[str]]] = []
    for name, label in (("int8", "int8 over f32"), ("pruned int8", "Pruned and int8 over f32")):
        form = forms.get(name)
        if form and form.speedup and form.latency_ms:
            detail = f"{number_format.milliseconds(form.latency_ms.estimate)}, {number_format.count(form.macs)} multiply-accumulates"
            results.append((label, number_format.speedup(vars(form.speedup)), [detail]))
    most = number_format.whole_percent(check.most_prunable)
    results += [
        (
            "Can be pruned",
            number_format.whole_percent(prunable),
            [f"of the multiply-accumulates; at most {most} can be removed"],
        ),
        ("Runs in int8", number_format.whole_percent(int8), [f"of the multiply-accumulates, in {check.runtime}"]),
    ]
    return results


def _list_findings(findings: Sequence[Finding]) -> str:
    """Return the findings, each with its meaning, the line of the code and what to do."""
    rows = []
    for finding in findings:
        colour = {"pass": "pass", "not_measured": "not_measured"}.get(finding.status, finding.status)
        mark = (
            f'<div><b class="{colour}">{STATUS_SIGNS[finding.status]} {model_checks_text.humanize(finding.status)}</b>'
            f"<small>{escape(finding.check.replace('_', ' '))}</small></div>"
        )
        lines = f"<p>{escape(finding.text)}</p>"
        lines += f"<p><code>{escape(finding.line)}</code></p>" if finding.line else ""
        lines += f'<p class="action">{escape(finding.action)}</p>' if finding.action else ""
        rows.append(f"<li>{mark}<div>{lines}</div></li>")
    return f'<ul class="findings">{"".join(rows)}</ul>'


def plot_blocks(check: ModelCheck) -> str:
    """Draw the blocks as bars of multiply-accumulates, coloured by what can be done with their layers."""
    blocks = divide_into_blocks(check, PAGE_BLOCKS)
    used = [ability for ability in ABILITIES if any(block.macs_by_ability()[ability] for block in blocks)]
    with svg.figure(720, 70 + ROW_HEIGHT * len(blocks)) as drawing:
        height = 70 + ROW_HEIGHT * len(blocks)
        axes = drawing.add_axes((0.24, 38 / height, 0.72, 1 - 68 / height))
        starts = [0.0] * len(blocks)
        for ability in used:
            widths = [100 * block.macs_by_ability()[ability] / max(check.macs, 1) for block in blocks]
            axes.barh(
                range(len(blocks)), widths, left=starts, height=0.7, color=COLOURS[ability], label=LABELS[ability]
            )
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(range(len(blocks)), [number_format.shorten_name(block.name) for block in blocks])
        axes.set(ylim=(len(blocks) - 0.4, -0.6), xlabel="share of the multiply-accumulates, %")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.3, 1.0),
            ncols=len(used),
            frameon=False,
            handlelength=1,
            borderaxespad=0.2,
        )
        return svg.render(drawing, "blocks", "multiply-accumulates of each block")


def plot_latency(forms: Sequence[TimedForm]) -> str:
    """Draw the latency of each form as a bar with its interval."""
    timed = [(form.name, form.latency_ms) for form in forms if form.latency_ms]
    height = 50 + 24 * len(timed)
    with svg.figure(720, height) as drawing:
        axes = drawing.add_axes((0.24, 38 / height, 0.72, 1 - 44 / height))
        for row, (name, latency) in enumerate(timed):
            axes.barh([row], [latency.estimate], height=0.6, color=svg.MAIN if "int8" in name else svg.COOL)
            axes.hlines(row, latency.low, latency.high, color=svg.INK, linewidth=1)
        axes.set_yticks(range(len(timed)), [name for name, _ in timed])
        axes.set(ylim=(len(timed) - 0.4, -0.6), xlabel="milliseconds", xlim=(0, None))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return svg.render(drawing, "latency", "latency of each form")


def _describe_machine(check: ModelCheck) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(check.versions.items()))
    machine = ", ".join(f"{value}" for value in check.machine.values())
    return f"Machine: {machine}. Versions: {versions}."
