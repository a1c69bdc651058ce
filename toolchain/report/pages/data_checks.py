"""The result of `toolchain check-data` as one HTML file: findings, tables, and the worst duplicates side by side.

No scripts and nothing fetched: the images are small copies inside the page.
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
)
from toolchain.data.checks.wording import from_display_path, pluralize
from toolchain.edge import run
from toolchain.report import html_page, number_format
from toolchain.report.pages import data_checks_text
from toolchain.report.table import Table

if TYPE_CHECKING:
    from toolchain.models.domain_shift import CalibratedDistance, DomainShift


MAX_IMAGES = 60  # of duplicates on the page
MAX_GROUP_IMAGES = 6  # of one group of duplicates
THUMBNAIL_SIDE = 160  # in pixels
MAX_PNG_PIXELS = 4096  # of a thumbnail; a larger one is smaller as JPEG
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
.duplicates { background: var(--card); border-radius: 10px; padding: .8rem 1rem 1rem; break-inside: avoid; }
.duplicates h3 { font-size: .9375rem; font-weight: 600; margin: 0 0 .6rem; }
.duplicates div { display: flex; flex-wrap: wrap; gap: .8rem; }
.duplicates figure { margin: 0; width: 10rem; }
.duplicates img { display: block; width: 10rem; height: 8rem; object-fit: contain; background: var(--rule);
  border-radius: 4px; }
.duplicates img.small { image-rendering: pixelated; }
.duplicates figcaption { font-size: .8125rem; overflow-wrap: anywhere; margin-top: .3rem; }
.duplicates figcaption b { color: var(--ink); font-weight: 600; }
@media (max-width: 30rem) { .findings > li { grid-template-columns: 1fr; gap: .2rem; } }
"""


def render_html(checkup: DatasetCheck, shift: "DomainShift | None") -> str:
    """Return the whole page; thumbnails are read from the dataset's folder.

    Args:
        checkup: findings and counts.
        shift: the distance from the data that a pretrained model knows; None where no model was named.
    """
    parts = (
        _head(checkup),
        html_page.section("Findings", _findings(checkup.findings)),
        html_page.section("Duplicates", _lay_out_duplicates(checkup)),
        html_page.section(
            "Classes", html_page.render_table(data_checks_text.tabulate_classes(checkup)), html_page.hint(RECALL_HINT)
        ),
        html_page.section(
            "Sizes and pixel modes",
            _columns(data_checks_text.tabulate_sizes(checkup), data_checks_text.tabulate_modes(checkup)),
        ),
        html_page.section("Distance from the data that the model knows", _describe_shift(shift) if shift else ""),
    )
    return html_page.render_page(f"{checkup.domain}: dataset check", parts, EXTRA_CSS)


RECALL_HINT = (
    "Recall known to: half the width of the 95 % interval on the recall of a class, for its number of test images, at a "
    "recall of one half, where the interval is widest."
)


def _columns(*tables: Table) -> str:
    return f'<div class="columns">{"".join(f"<div>{html_page.render_table(table)}</div>" for table in tables)}</div>'


def _head(checkup: DatasetCheck) -> str:
    outcome_class = "fails" if checkup.has_severe_finding else "ships"
    results = (
        ("Images", f"{checkup.pictures:,}", _describe_files(checkup)),
        ("Severe findings", *_count_findings(checkup, "severe")),
        ("Warnings", *_count_findings(checkup, "warning")),
        (
            "Minimum detectable difference",
            _format_smallest_difference(checkup),
            "in accuracy, of two models on the same test images",
        ),
    )
    outcome = data_checks_text.describe_outcome(checkup)
    return (
        f'<p class="lead">{escape(data_checks_text.title(checkup))}</p><h1 class="{outcome_class}">{escape(outcome)}</h1>'
        + html_page.render_key_results((name, value, [detail]) for name, value, detail in results)
    )


def _describe_files(checkup: DatasetCheck) -> str:
    searched = f"{checkup.searched:,} of them searched for duplicates"
    return f"{searched}; {checkup.unreadable:,} unreadable, {pluralize(checkup.ignored, 'other file')}"


def _count_findings(checkup: DatasetCheck, severity: str) -> tuple[str, str]:
    kinds = [finding.kind for finding in checkup.findings if finding.severity == severity]
    return str(len(kinds)), ", ".join(dict.fromkeys(kinds)) or "none"


def _format_smallest_difference(checkup: DatasetCheck) -> str:
    difference = checkup.smallest_difference
    return number_format.MISSING if difference is None else f"{number_format.significant(100 * difference, 2)} pt"


def _findings(findings: Sequence[Finding]) -> str:
    """Return all findings, the worst first, each with a list of its files that opens."""
    rows = []
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        mark = f'<b class="{finding.severity}">{SEVERITY_SIGNS[finding.severity]} {finding.severity}</b>'
        rows.append(f"<li>{mark}<div><p>{escape(finding.text)}</p>{_files(finding.files)}</div></li>")
    return f'<ul class="findings">{"".join(rows)}</ul>' if rows else "<p>No findings.</p>"


def _files(files: Sequence[str]) -> str:
    if not files:
        return ""
    more = f"<p>and {len(files) - MAX_FILES:,} more</p>" if len(files) > MAX_FILES else ""
    names = "<br>".join(escape(name) for name in files[:MAX_FILES])
    return f"<details><summary>{pluralize(len(files), 'file')}</summary><p>{names}</p>{more}</details>"


# --- duplicates ---------------------------------------------------------------------------------------------


def _lay_out_duplicates(checkup: DatasetCheck) -> str:
    """Return the worst groups of duplicates side by side, at most MAX_IMAGES images; "" without any."""
    shown = list(_choose_groups(checkup.copies))
    if not shown:
        return ""
    folder = from_display_path(checkup.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the findings name the files that Pillow warns about
        cards = "".join(_card(folder, checkup.mode, group) for group in shown)
    left = len(checkup.copies) - len(shown)
    more = (
        html_page.hint(f"{pluralize(left, 'further group')} of duplicates are listed under the findings.")
        if left
        else ""
    )
    return f'<div class="sheet">{cards}</div>{more}'


def _choose_groups(copies: Sequence[DuplicateGroup]) -> Iterator[DuplicateGroup]:
    """Yield the first groups, the last one cut off where MAX_IMAGES is reached."""
    left = MAX_IMAGES
    for group in copies:
        if left < 2:
            return
        members = group.members[: min(left, MAX_GROUP_IMAGES)]
        yield DuplicateGroup(exact=group.exact, mirrored=group.mirrored, members=members)
        left -= len(members)


def _card(folder: Path, mode: str, group: DuplicateGroup) -> str:
    images = "".join(_lay_out_image(folder, mode, member) for member in group.members)
    return f'<div class="duplicates"><h3>{escape(_describe_group(group))}</h3><div>{images}</div></div>'


def _describe_group(group: DuplicateGroup) -> str:
    same = "Same pixels" if group.exact else "Near-duplicates, mirrored" if group.mirrored else "Near-duplicates"
    labels = ", different labels" if group.has_label_conflict else ""
    return same + labels + (", in different splits" if group.crosses_splits else "")


def _lay_out_image(folder: Path, mode: str, member: DuplicateImage) -> str:
    where = f"{escape(member.split)} · " if member.split else ""
    name = f"<figcaption><b>{escape(member.label)}</b><br>{where}{escape(Path(member.file).name)}</figcaption>"
    try:
        image = Image.fromarray(run.read_image(folder / from_display_path(member.file), mode))
    except run.Refused:
        return f"<figure>{name}</figure>"
    small = ' class="small"' if max(image.size) < THUMBNAIL_SIDE else ""
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return f'<figure><img{small} alt="{escape(member.file)}" src="{_encode_image(image)}">{name}</figure>'


def _encode_image(image: Image.Image) -> str:
    """Return an image as a data URL: PNG where it is tiny, else JPEG."""
    out, file_format = io.BytesIO(), "png" if image.width * image.height < MAX_PNG_PIXELS else "jpeg"
    image.save(out, file_format, **({"quality": 80} if file_format == "jpeg" else {}))
    return f"data:image/{file_format};base64,{base64.b64encode(out.getvalue()).decode()}"


# --- domain shift -------------------------------------------------------------------------------------------


def _describe_shift(shift: "DomainShift") -> str:
    """Return both distances between their bounds, and how many images they were measured on."""
    rows = [
        *_tabulate_distance("Batch-norm statistics (standard deviations)", shift.statistics),
        *_tabulate_distance(f"Features of {shift.source} (proxy A-distance)", shift.features),
    ]
    columns = ("Measured by", "Distance", "No shift", "Nothing in common", "Result")
    images = pluralize(shift.pictures, "image")
    images += f" of the dataset, {shift.source_pictures:,} of {shift.source}" if shift.source else ""
    return (
        f"<p>{escape(shift.text)}</p>"
        + html_page.render_table(Table(columns=columns, rows=tuple(rows)))
        + html_page.hint(
            f"{images}; {shift.model}. Nothing in common: scrambled images, or two datasets that a classifier never confuses."
        )
    )


def _tabulate_distance(name: str, distance: "CalibratedDistance | None") -> list[tuple[str, ...]]:
    if distance is None:
        return []
    numbers = (number_format.significant(value) for value in (distance.value, distance.lowest, distance.highest))
    return [(name, *numbers, distance.verdict)]
