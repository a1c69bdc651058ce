"""The elements of every HTML page: style, tables, plots, hints; no scripts, nothing fetched, light, dark and on paper."""

from collections.abc import Iterable, Sequence
from html import escape

from toolchain.report.table import Table

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
.results { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.results > div { background: var(--card); border-radius: 10px; padding: 1rem 1.2rem 1.1rem; break-inside: avoid; }
dd.figure { font-size: 1.9rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; margin-bottom: .3rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
dd.figure small { font-size: .95rem; font-weight: 400; color: var(--muted); letter-spacing: 0; white-space: nowrap; }
.facts { columns: 22rem 2; column-gap: 2.5rem; font-variant-numeric: tabular-nums; }
.facts > div { display: grid; grid-template-columns: 11rem 1fr; gap: .8rem; padding: .3rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--rule); }
.facts dd { font-size: .875rem; }
.notice { margin: 1rem 0 0; padding: .7rem 1.2rem; border-left: 3px solid var(--main); }
.notice.warned { border-color: var(--doubt); }
.notice p { margin: 0; } .notice p + p { margin-top: .4rem; }
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
  .results { grid-template-columns: 1fr 1fr; }
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


def render_page(title: str, parts: Iterable[str], css: str = "") -> str:
    """Return a whole page of those parts that are not empty; `css` comes after the style of all pages."""
    body = "\n".join(part for part in parts if part)
    return PAGE_TEMPLATE.format(title=escape(title), css=CSS + css, body=body)


def render_key_results(results: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """Return the cards at the top of a page: of each the name, the figure and its details; intervals are small."""
    cards = "".join(_card(name, value, details) for name, value, details in results)
    return f'<dl class="results">{cards}</dl>'


def _card(name: str, value: str, details: Sequence[str]) -> str:
    figure, _, interval = value.partition(" [")
    small = f" <small>[{escape(interval)}</small>" if interval else ""
    lines = "".join(f"<dd>{escape(line)}</dd>" for line in details)
    return f'<div><dt>{escape(name)}</dt><dd class="figure">{escape(figure)}{small}</dd>{lines}</div>'


def notice(sentences: Iterable[object], *, warning: bool = False) -> str:
    """Return sentences, a paragraph each, beside a line at the margin; "" without any."""
    paragraphs = "".join(f"<p>{escape(str(sentence))}</p>" for sentence in sentences)
    return f'<div class="notice{" warned" if warning else ""}">{paragraphs}</div>' if paragraphs else ""


def section(title: str, *parts: str) -> str:
    """Return a section with its heading; "" where the first part is empty."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>" if parts and parts[0] else ""


def hint(text: str) -> str:
    """Return a paragraph of small print."""
    return f'<p class="hint">{escape(text)}</p>'


def plot(svg: str, caption: str = "") -> str:
    """Return a plot over the whole width with its caption; "" without a plot."""
    if not svg:
        return ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide large">{svg}</div>{below}</figure>'


def render_table(table: Table) -> str:
    """Return any table, the row that ships marked, intervals below their figures; "" without rows."""
    if not table.rows:
        return ""
    head = "".join(
        f'<th scope="col"{_text_class(i, table.text_columns)}>{escape(name)}</th>'
        for i, name in enumerate(table.columns)
    )
    body = []
    for number, row in enumerate(table.rows):
        ships = number == table.shipping_row
        row_class, badge = (' class="ships"', '<span class="badge">ships</span>') if ships else ("", "")
        cells = "".join(_cell(text, i, table.text_columns) for i, text in enumerate(row) if i)
        body.append(f'<tr{row_class}><th scope="row" class="prose">{escape(row[0])}{badge}</th>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _text_class(column: int, text_columns: Sequence[int]) -> str:
    return ' class="prose"' if column in text_columns else ""


def _cell(text: str, column: int, text_columns: Sequence[int]) -> str:
    if column in text_columns:
        return f'<td class="prose">{escape(text)}</td>'
    figure, _, interval = text.partition(" [")
    return f"<td>{escape(figure)}" + (f"<small>[{escape(interval)}</small>" if interval else "") + "</td>"
