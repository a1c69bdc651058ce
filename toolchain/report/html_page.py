"""The report as one HTML file: no scripts, nothing fetched, light and dark, on paper and on a phone."""

from collections.abc import Sequence
from html import escape

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import charts, key_results, number_format
from toolchain.report.key_results import KeyResult
from toolchain.report.sections import (
    provenance,
    pruning,
    quantization,
    reuse,
    selection,
    sensitivity,
    training,
    variants,
    verdicts,
)
from toolchain.report.table import Table

OUTCOME_SIGNS = {"pass": "✓", "fail": "✗", "cannot_tell": "?", "not_measured": number_format.MISSING}

CSS = """
:root { color-scheme: light dark; --paper: #fff; --card: #f5f6f7; --ink: #1a2027; --muted: #5b6570; --rule: #d5dae0;
  --main: #0a6c74; --warm: #b4540a; --cool: #47689c; --pass: #17703f; --fail: #b3261e; --doubt: #8a5a00;
  --wash: #e8f3f3; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14181c; --card: #1d2329; --ink: #e6eaee;
  --muted: #9aa5b0; --rule: #39424b; --main: #4fc1c9; --warm: #f0a35e; --cool: #8fb0e6; --pass: #6fcf97;
  --fail: #ff8a80; --doubt: #f2c14e; --wash: #17302f; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.15; margin: .2rem 0 1.6rem; letter-spacing: -.015em;
  text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0; max-width: 46rem; }
.lead, .hint, figcaption { color: var(--muted); }
.lead { margin: 0; }
.hint, figcaption { font-size: .875rem; }
.fails { color: var(--fail); }
dl { margin: 0; }
dt { font-size: .875rem; color: var(--muted); }
dd { margin: 0; font-size: .9375rem; overflow-wrap: anywhere; }
.answers { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.answers > div { background: var(--card); border-radius: 10px; padding: 1rem 1.2rem 1.1rem; break-inside: avoid; }
dd.figure { font-size: 1.9rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; margin-bottom: .3rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
dd.figure small { font-size: .95rem; font-weight: 400; color: var(--muted); letter-spacing: 0; white-space: nowrap; }
.facts { columns: 22rem 2; column-gap: 2.5rem; font-variant-numeric: tabular-nums; }
.facts > div { display: grid; grid-template-columns: 11rem 1fr; gap: .8rem; padding: .3rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--rule); }
.facts dd { font-size: .875rem; }
.said { margin: 1rem 0 0; padding: .7rem 1.2rem; border-left: 3px solid var(--main); }
.said.warned { border-color: var(--doubt); }
.said p { margin: 0; } .said p + p { margin-top: .4rem; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .42rem .7rem; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 400; }
th.prose, td.prose { text-align: left; }
td.prose { white-space: normal; min-width: 6.5rem; overflow-wrap: anywhere; }
td.prose:last-child { min-width: 16rem; }
td small { display: block; color: var(--muted); font-size: .8125rem; }
tr.ships { background: var(--wash); }
tr.ships th { font-weight: 650; }
.badge { display: inline-block; margin-left: .4rem; padding: 0 .5rem; border-radius: 99px; background: var(--main);
  color: var(--paper); font-size: .75rem; font-weight: 650; }
.outcome { white-space: nowrap; font-weight: 600; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .cannot_tell { color: var(--doubt); }
.not_measured { color: var(--muted); }
figure { margin: 1.4rem 0 0; }
.plots { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.chart { display: block; width: 100%; height: auto; }
.chart * { stroke-linejoin: round; }
.large .chart { min-width: 42rem; }
.chart text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.bar { width: 60%; }
details { margin: .8rem 0 0; }
summary { cursor: pointer; font-size: .875rem; color: var(--main); }
.bar span { display: block; height: .8rem; margin-top: .3rem; border-radius: 2px; background: var(--cool); }
@media print {
  @page { margin: 14mm; }
  body { padding: 0; font-size: 10pt; max-width: none; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2 { break-after: avoid; margin-top: 1.6rem; }
  tr, figure, .chart { break-inside: avoid; }
  .wide { overflow: visible; }
  .large .chart { min-width: 0; }
  .answers { grid-template-columns: 1fr 1fr; }
  .plots { grid-template-columns: 1fr 1fr; }
  table { font-size: 8pt; }
  td small { font-size: 7pt; }
  th, td { padding: .25rem .35rem; }
}
"""


PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body>
{body}
</body>
</html>
"""


def render(report: RunReport) -> str:
    """The whole page."""
    body = "\n".join(part for part in (_head(report), *_sections(report)) if part)
    return PAGE_TEMPLATE.format(title=escape(key_results.title(report)), css=CSS, body=body)


def _head(report: RunReport) -> str:
    """What ships and the four answers, then what is to be said about them."""
    kind = "ships" if run_report.shipped_name(report) else "fails"
    where = " · ".join(str(report[k]) for k in ("runtime", "domain") if report.get(k))
    lead = escape(" · ".join(part for part in (key_results.title(report), where) if part))
    tiles = "".join(_tile(answer) for answer in key_results.list_key_results(report))
    said = _said(report.get("notes") or (), "") + _said(
        [f"Warning: {warning}" for warning in report.get("warnings") or ()], " warned"
    )
    h1 = f'<h1 class="{kind}">{escape(run_report.describe_outcome(report))}</h1>'
    return f'<p class="lead">{lead}</p>{h1}<dl class="answers">{tiles}</dl>{said}'


def _tile(answer: KeyResult) -> str:
    figure, _, interval = answer.value.partition(" [")
    small = f" <small>[{escape(interval)}</small>" if interval else ""
    details = "".join(f"<dd>{escape(line)}</dd>" for line in answer.details)
    return f'<div><dt>{answer.question}</dt><dd class="figure">{escape(figure)}{small}</dd>{details}</div>'


def _said(sentences: Sequence[object], kind: str) -> str:
    lines = "".join(f"<p>{escape(str(sentence))}</p>" for sentence in sentences)
    return f'<div class="said{kind}">{lines}</div>' if lines else ""


def _sections(report: RunReport) -> list[str]:
    """Everything below the answers; a section without content is left out."""
    taught = _plot(charts.plot_training(report), "Accuracy on the validation split at the end of each epoch.")
    executed = "As the runtime's own executed graph says; every convolution and linear layer left in float is named."
    return [
        _section("Verdicts", _verdicts(report)),
        _section(
            "Variants",
            render_table(variants.tabulate_variants(report)),
            _plot(charts.plot_trade_off(report), _plotted(report)),
        ),
        _section("What each variant needs", render_table(variants.tabulate_costs(report)), _hint(COSTS_HINT)),
        _section("Candidates for the model", *_ranked(report)),
        _section(reuse.TITLE, *_reused(report)),
        _section("Layers before and after pruning", *_widths(report)),
        _section("Size of the pictures", render_table(pruning.tabulate_image_sizes(report)), _hint(IMAGE_SIZES_HINT)),
        _section("How much each layer minds being pruned", *_sensitivity(report)),
        _section("Training", taught, render_table(training.tabulate_training(report))),
        _section("Fine-tuning with several seeds", render_table(training.tabulate_seeds(report))),
        _section(
            "Further sets joined to the training images",
            render_table(training.tabulate_joined(report)),
            _hint(JOINED_HINT),
        ),
        _section("What ran in integers", render_table(quantization.tabulate_coverage(report)), _hint(executed)),
        _section(
            "Placements timed before training",
            render_table(quantization.tabulate_placements(report)),
            _hint(_searched(report)),
        ),
        _section(
            "Calibration of activation ranges",
            render_table(quantization.tabulate_calibration(report)),
            _hint(CALIBRATION_HINT),
        ),
        _section(
            "Layers ranked for accuracy control",
            render_table(quantization.tabulate_accuracy_control(report)),
            _hint(ACCURACY_CONTROL_HINT),
        ),
        _section("How it was measured", _facts(report)),
        _section("Time of each stage", _seconds(report)),
    ]


CALIBRATION_HINT = (
    "Divergence: Kullback-Leibler, nats an image, from the float model's answers on validation; less is closer, and the "
    "closest is kept."
)
ACCURACY_CONTROL_HINT = (
    "What leaving one block in float brings on validation, and what it costs on the target; the most harmful for the "
    "least latency come first."
)
BLOCKS_CAPTION = "Each residual block left out alone, without any training. Dashed: the whole network. Orange: the plan leaves it out."
IMAGE_SIZES_HINT = (
    "Each size with the widths and blocks that meet the budget at it; what a short training reaches on validation decided. "
    "Latency is measured on the untrained architecture, as a share of the dense model's as it would ship."
)
JOINED_HINT = "What each set brought on the domain's own validation images, paired over them; 95 % interval."
COSTS_HINT = (
    "MACs: multiply-accumulates of one image. Of peak: share of what the core can compute. Parity: images on which the "
    "artefact in its runtime names the same class as the trained model. Steps: largest difference of a logit, in "
    "quantization steps. Load and first run are those of a fresh process."
)


def _section(title: str, *parts: str) -> str:
    content = "".join(parts)
    return f"<section><h2>{title}</h2>{content}</section>" if parts and parts[0] else ""


def _hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def _plot(svg: str, caption: str) -> str:
    return (
        f'<figure><div class="wide large">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>' if svg else ""
    )


def _searched(report: RunReport) -> str:
    """Says what the candidates are, where there were any."""
    return (
        f"Latency does not depend on the weights: these are untrained candidates, each timed against the float model in one "
        f"process. {quantization.describe_search(report)}."
    )


def _plotted(report: RunReport) -> str:
    """The plot's caption, naming what could not be drawn."""
    left_out = [str(v["name"]) for v in report.get("variants") or () if not charts.is_plottable(v)]
    missing = f" Not drawn for want of a figure: {', '.join(left_out)}." if left_out else ""
    ring = " The ring marks the variant that ships." if run_report.shipped_name(report) else ""
    return f"Upper left is better.{ring}{missing}"


def _widths(report: RunReport) -> tuple[str, ...]:
    plots = charts.plot_widths(report)
    columns = f'<div class="plots">{"".join(plots)}</div>' if plots else ""
    colours = "The pale bar is the width before, the bar in it the width after; grey where nothing went."
    return columns, _hint(f"Channels that each layer puts out. {colours} {pruning.describe_pruning(report)}.")


def _ranked(report: RunReport) -> tuple[str, ...]:
    """The candidates that the recipe left the choice among."""
    found = report.get("selected")
    if not found:
        return ()
    return (
        render_table(selection.tabulate_ranking(found)),
        _hint(f"{selection.summarize(found)}."),
        render_table(selection.tabulate_left_out(found)),
    )


def _reused(report: RunReport) -> tuple[str, ...]:
    """The curves behind the advice, and what was done."""
    found = (report.get("reuse") or {}).get("advice")
    if not found:
        return ()
    if not found["depths"]:
        return (_hint(f"{reuse.describe(found)}."),)
    return _plot(reuse.plot_depths(found), f"{reuse.describe(found)}."), render_table(reuse.tabulate(found))


def _sensitivity(report: RunReport) -> tuple[str, ...]:
    """Curves of the groups, dots of the blocks, and all of both as a table that opens."""
    content = render_table(sensitivity.tabulate(report))
    if not content:
        return ()
    shown = charts.PANEL_GRID[0] * charts.PANEL_GRID[1]
    return (
        _plot(charts.plot_sensitivity(report), sensitivity.make_caption(report, shown))
        + _plot(charts.plot_blocks(report), BLOCKS_CAPTION)
        + f"<details><summary>All groups and blocks as a table</summary>{content}</details>",
    )


def _cell(text: str, column: int, prose: tuple[int, ...]) -> str:
    if column in prose:
        return f'<td class="prose">{escape(text)}</td>'
    figure, _, interval = text.partition(" [")
    return f"<td>{escape(figure)}" + (f"<small>[{escape(interval)}</small>" if interval else "") + "</td>"


def render_table(content: Table) -> str:
    """Any table; the row that ships is marked. Intervals stand below their figures."""
    if not content.rows:
        return ""
    head = "".join(
        f'<th scope="col"{_side(i, content.text_columns)}>{escape(name)}</th>' for i, name in enumerate(content.columns)
    )
    body = []
    for number, row in enumerate(content.rows):
        ships, badge = (
            (' class="ships"', '<span class="badge">ships</span>') if number == content.shipping_row else ("", "")
        )
        cells = "".join(_cell(text, i, content.text_columns) for i, text in enumerate(row) if i)
        body.append(f'<tr{ships}><th scope="row" class="prose">{escape(row[0])}{badge}</th>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _side(column: int, prose: tuple[int, ...]) -> str:
    return ' class="prose"' if column in prose else ""


def _verdicts(report: RunReport) -> str:
    """The table of verdicts with each outcome's sign and colour."""
    text = render_table(verdicts.tabulate_verdicts(report))
    for key, sign in OUTCOME_SIGNS.items():
        plain = f'<td class="prose">{run_report.humanize(key)}</td>'
        text = text.replace(
            plain, f'<td class="prose"><span class="outcome {key}">{sign} {run_report.humanize(key)}</span></td>'
        )
    return text


def _facts(report: RunReport) -> str:
    """What was measured on what, as pairs in as many columns as the page has room for."""
    pairs = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in provenance.tabulate_provenance(report).rows
    )
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _seconds(report: RunReport) -> str:
    """Each stage's time with a bar for its share of the longest."""
    took = {
        name: 0 if number_format.is_missing(value) else value for name, value in (report.get("seconds") or {}).items()
    }
    most, rows = max(took.values(), default=0) or 1, []
    for name, text in provenance.tabulate_step_times(report).rows:
        bar = f'<span style="width:{100 * took.get(name, 0) / most:.1f}%"></span>'
        rows.append(
            f'<tr><th scope="row" class="prose">{escape(name)}</th><td>{text}</td><td class="bar">{bar}</td></tr>'
        )
    return f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>' if rows else ""
