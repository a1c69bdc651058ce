"""The examination of a labelled image set before anything is trained on it: every check, and what they found.

Nothing stops at the first bad file, and no model is needed: files are read once, copies are found among thumbnails.
"""

import time
from collections import Counter
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Budget
from toolchain.data.checks import (
    class_balance,
    duplicates,
    exposure_groups,
    folder_contents,
    image_files,
    near_duplicates,
    sequences,
    thumbnails,
)
from toolchain.data.checks.finding import SEVERITIES, Checkup, Finding, many, shown


def run(
    domain: Domain, cache: Path, *, budget: Budget | None = None, image_size: tuple[int, int] | None = None
) -> Checkup:
    """Examines a domain; `image_size` is the network's input (height, width), the domain's own if not given.

    Raises:
        ToolchainError: there is no folder, or not a single picture in it.
    """
    started = time.monotonic()
    found = folder_contents.find(domain, cache)
    looks = thumbnails.look_at_all(found.entries, domain.mode)
    distinct = duplicates.distinct(looks)
    firsts = [group[0] for group in distinct]
    search = near_duplicates.search(firsts)
    doubles = duplicates.ordered([*duplicates.exact(distinct), *duplicates.near(distinct, search)])
    classes = class_balance.classes(found.entries, found.classes)
    groups = exposure_groups.find(domain, firsts, search)
    findings = [
        *found.findings,
        *image_files.findings(looks, domain, image_size or domain.image_size),
        *duplicates.findings(doubles, Counter(entry.split for entry in found.entries)),
        *exposure_groups.findings(groups, given=found.given),
        *([] if groups else sequences.findings(sequences.find(firsts, search))),
        *class_balance.findings(classes, budget),
        *_searched(search, firsts),
    ]
    return Checkup(
        domain=domain.name,
        folder=shown(found.root),
        mode=domain.mode,
        pictures=sum(not look.problem for look in looks),
        unreadable=sum(bool(look.problem) for look in looks),
        ignored=len(found.ignored),
        classes=classes,
        sizes=image_files.sizes(looks),
        modes=dict(Counter(look.mode for look in looks if not look.problem).most_common()),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        copies=doubles,
        searched=len(search.rows),
        group_pattern=groups.pattern if groups else "",
        smallest_difference=class_balance.smallest_difference(classes),
        seconds=round(time.monotonic() - started, 3),
    )


def _searched(search: near_duplicates.Search, firsts: list[thumbnails.Look]) -> list[Finding]:
    """What the search for near duplicates left out."""
    flat = len(firsts) - len(search.rows)
    if not search.whole:
        text = (
            f"Near duplicates were looked for among {len(search.rows):,} of {len(firsts):,} pictures, or too many were "
            "found to look at all: there are more than are listed."
        )
        return [Finding(severity="warning", kind="searched", text=text)]
    text = f"{many(flat)} without any contrast cannot be compared with others; look whether they show anything."
    return [Finding(severity="warning", kind="searched", text=text)] if flat else []
