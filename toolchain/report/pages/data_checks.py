"""The examination as one HTML file in the report's look: findings, tables, and the worst finds side by side.

No scripts and nothing fetched: the pictures are small copies inside the page.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from toolchain.data.checks.finding import (
    SEVERITIES,
    DatasetCheck,
    DuplicateGroup,
    DuplicateImage,
    Finding,
    from_display_path,
    pluralize,
)
from toolchain.edge import run
from toolchain.report import html_page, number_format
from toolchain.report.pages import data_checks_text
from toolchain.report.table import Table

if TYPE_CHECKING:
    from toolchain.models.domain_shift import CalibratedDistance, DomainShift


MAX_IMAGES = 60  # pictures on the sheet
SHOWN_SIDE = 160  # of a picture, in pixels
MAX_FILES = 200  # names listed under a finding
SEVERITY_SIGNS = {"severe": "✗", "warning": "!", "note": "i"}

EXTRA_CSS = """
ul.findings { list-style: none; margin: 1.2rem 0 0; padding: 0; }
.findings > li { display: grid; grid-template-columns: 6.5rem 1fr; gap: .8rem; padding: .7rem 0;
  border-bottom: 1px solid var(--rule); break-inside: avoid; }
.findings p { max-width: none; margin: 0; overflow-wrap: anywhere; }
.severe { color: var(--fail); } .warning { color: var(--doubt); } .note { color: var(--muted); }
.findings b { font-weight: 600; white-space: nowrap; }
details { margin-top: .3rem; font-size: .875rem; color: var(--muted); }
details p { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .8125rem; }
.columns { display: grid; gap: 0 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.sheet { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.copies { background: var(--card); border-radius: 10px; padding: .8rem 1rem 1rem; break-inside: avoid; }
.copies h3 { font-size: .9375rem; font-weight: 600; margin: 0 0 .6rem; }
.copies div { display: flex; flex-wrap: wrap; gap: .8rem; }
.copies figure { margin: 0; width: 10rem; }
.copies img { display: block; width: 10rem; height: 8rem; object-fit: contain; background: var(--rule);
  border-radius: 4px; }
.copies img.small { image-rendering: pixelated; }
.copies figcaption { font-size: .8125rem; overflow-wrap: anywhere; margin-top: .3rem; }
.copies figcaption b { color: var(--ink); font-weight: 600; }
@media (max-width: 30rem) { .findings > li { grid-template-columns: 1fr; gap: .2rem; } }
"""


def render_html(checkup: DatasetCheck, shift: "DomainShift | None") -> str:
    """The whole page; the pictures are read from the folder once more."""
    parts = (
        _head(checkup),
        html_page.section("Findings", _findings(checkup.findings)),
        html_page.section("Look at these", _sheet(checkup)),
        html_page.section(
            "Classes", html_page.render_table(data_checks_text.tabulate_classes(checkup)), html_page.hint(RECALL_HINT)
        ),
        html_page.section(
            "Sizes and kinds",
            _columns(data_checks_text.tabulate_sizes(checkup), data_checks_text.tabulate_modes(checkup)),
        ),
        html_page.section("Distance to what the model knows", _shift(shift) if shift else ""),
    )
    return html_page.render_page(f"{checkup.domain}: examination of the pictures", parts, EXTRA_CSS)


RECALL_HINT = (
    "Recall known to: half the width of the 95 % interval on the share of a class's test pictures that is recognised, "
    "where it is widest, at one half."
)


def _columns(*found: Table) -> str:
    return f'<div class="columns">{"".join(f"<div>{html_page.render_table(one)}</div>" for one in found)}</div>'


def _head(checkup: DatasetCheck) -> str:
    kind = "fails" if checkup.has_severe_finding else "ships"
    tiles = (
        ("What was read", f"{checkup.pictures:,}", _read(checkup)),
        ("Severe findings", *_counted(checkup, "severe")),
        ("Warnings", *_counted(checkup, "warning")),
        (
            "Smallest difference the test split shows",
            _smallest(checkup),
            "in accuracy, of two models on the same pictures",
        ),
    )
    results = html_page.render_key_results((name, figure, [more]) for name, figure, more in tiles)
    return (
        f'<p class="lead">{escape(data_checks_text.title(checkup))}</p><h1 class="{kind}">{escape(data_checks_text.describe_outcome(checkup))}</h1>'
        f"{results}"
    )


def _read(checkup: DatasetCheck) -> str:
    searched = f"{checkup.searched:,} of them compared with each other"
    return f"pictures, {searched}; {checkup.unreadable:,} unreadable, {pluralize(checkup.ignored, 'other file')}"


def _counted(checkup: DatasetCheck, severity: str) -> tuple[str, str]:
    kinds = [finding.kind for finding in checkup.findings if finding.severity == severity]
    return str(len(kinds)), ", ".join(dict.fromkeys(kinds)) or "none"


def _smallest(checkup: DatasetCheck) -> str:
    found = checkup.smallest_difference
    return number_format.MISSING if found is None else f"{number_format.significant(100 * found, 2)} pt"


def _findings(findings: Sequence[Finding]) -> str:
    """All findings, each with its files folded away."""
    rows = []
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        mark = f'<b class="{finding.severity}">{SEVERITY_SIGNS[finding.severity]} {finding.severity}</b>'
        rows.append(f"<li>{mark}<div><p>{escape(finding.text)}</p>{_files(finding.files)}</div></li>")
    return f'<ul class="findings">{"".join(rows)}</ul>' if rows else "<p>Nothing to say.</p>"


def _files(files: Sequence[str]) -> str:
    if not files:
        return ""
    more = f"<p>and {len(files) - MAX_FILES:,} more</p>" if len(files) > MAX_FILES else ""
    names = "<br>".join(escape(name) for name in files[:MAX_FILES])
    return f"<details><summary>{pluralize(len(files), 'file')}</summary><p>{names}</p>{more}</details>"


# --- the contact sheet --------------------------------------------------------------------------------------


def _sheet(checkup: DatasetCheck) -> str:
    """The worst groups of copies side by side, at most `MOST` pictures."""
    shown = list(_first(checkup.copies))
    if not shown:
        return ""
    folder = from_display_path(checkup.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says about odd files, the findings say
        cards = "".join(_card(folder, checkup.mode, group) for group in shown)
    left = len(checkup.copies) - len(shown)
    more = (
        html_page.hint(f"{pluralize(left, 'further group')} of copies are listed under the findings.") if left else ""
    )
    return f'<div class="sheet">{cards}</div>{more}'


def _first(copies: Sequence[DuplicateGroup]) -> Iterator[DuplicateGroup]:
    room = MAX_IMAGES
    for group in copies:
        if room < 2:
            return
        yield DuplicateGroup(exact=group.exact, mirrored=group.mirrored, members=group.members[: min(room, 6)])
        room -= min(len(group.members), 6)


def _card(folder: Path, mode: str, group: DuplicateGroup) -> str:
    pictures = "".join(_picture(folder, mode, member) for member in group.members)
    return f'<div class="copies"><h3>{escape(_kind(group))}</h3><div>{pictures}</div></div>'


def _kind(group: DuplicateGroup) -> str:
    same = "Same pixels" if group.exact else "Nearly equal, mirrored" if group.mirrored else "Nearly equal"
    labels = ", different labels" if group.has_label_conflict else ""
    return same + labels + (", on two sides of a split" if group.crosses_splits else "")


def _picture(folder: Path, mode: str, member: DuplicateImage) -> str:
    where = f"{escape(member.split)} · " if member.split else ""
    name = f"<figcaption><b>{escape(member.label)}</b><br>{where}{escape(Path(member.file).name)}</figcaption>"
    try:
        picture = Image.fromarray(run.read_picture(folder / from_display_path(member.file), mode))
    except run.Refused:
        return f"<figure>{name}</figure>"
    small = ' class="small"' if max(picture.size) < SHOWN_SIDE else ""
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return f'<figure><img{small} alt="{escape(member.file)}" src="{_data(picture)}">{name}</figure>'


def _data(picture: Image.Image) -> str:
    """The picture inside its own address: PNG where it is tiny, else JPEG."""
    out, kind = io.BytesIO(), "png" if picture.width * picture.height < 4096 else "jpeg"
    picture.save(out, kind, **({"quality": 80} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


# --- the distance -------------------------------------------------------------------------------------------


def _shift(shift: "DomainShift") -> str:
    rows = [
        *_distance("Batch norm's statistics (standard deviations)", shift.statistics),
        *_distance(f"Features of {shift.source} (proxy A-distance)", shift.features),
    ]
    columns = ("Measured by", "CalibratedDistance", "No shift", "Nothing in common", "So it is")
    drawn = f"{pluralize(shift.pictures)}" + (
        f" of the domain, {shift.source_pictures:,} of {shift.source}" if shift.source else ""
    )
    return (
        f"<p>{escape(shift.text)}</p>"
        + html_page.render_table(Table(columns=columns, rows=tuple(rows)))
        + html_page.hint(
            f"{drawn}; {shift.model}. Nothing in common: the same pictures scrambled, or two sets never confused."
        )
    )


def _distance(name: str, distance: "CalibratedDistance | None") -> list[tuple[str, ...]]:
    if distance is None:
        return []
    numbers = (number_format.significant(value) for value in (distance.value, distance.lowest, distance.highest))
    return [(name, *numbers, distance.verdict)]
