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
    consecutive_frames,
    duplicates,
    exposure_groups,
    folder_contents,
    image_files,
    near_duplicates,
    thumbnails,
)
from toolchain.data.checks.finding import SEVERITIES, DatasetCheck, Finding, pluralize, to_display_path


def check_dataset(
    domain: Domain, cache: Path, *, budget: Budget | None = None, image_size: tuple[int, int] | None = None
) -> DatasetCheck:
    """Examines a domain; `image_size` is the network's input (height, width), the domain's own if not given.

    Raises:
        ToolchainError: there is no folder, or not a single picture in it.
    """
    started = time.monotonic()
    found = folder_contents.list_contents(domain, cache)
    looks = thumbnails.inspect_files(found.image_files, domain.mode)
    distinct = duplicates.group_by_pixels(looks)
    firsts = [group[0] for group in distinct]
    search = near_duplicates.search(firsts)
    doubles = duplicates.sort_by_severity(
        [*duplicates.exact_groups(distinct), *duplicates.near_groups(distinct, search)]
    )
    classes = class_balance.count_classes(found.image_files, found.classes)
    groups = exposure_groups.find(domain, firsts, search)
    findings = [
        *found.findings,
        *image_files.check(looks, domain, image_size or domain.image_size),
        *duplicates.check(doubles, Counter(entry.split for entry in found.image_files)),
        *exposure_groups.check(groups, given=found.has_own_splits),
        *([] if groups else consecutive_frames.check(consecutive_frames.find(firsts, search))),
        *class_balance.check(classes, budget),
        *_searched(search, firsts),
    ]
    return DatasetCheck(
        domain=domain.name,
        folder=to_display_path(found.root),
        mode=domain.mode,
        pictures=sum(not look.problem for look in looks),
        unreadable=sum(bool(look.problem) for look in looks),
        ignored=len(found.ignored_files),
        classes=classes,
        sizes=image_files.count_sizes(looks),
        modes=dict(Counter(look.mode for look in looks if not look.problem).most_common()),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        copies=doubles,
        searched=len(search.searched_rows),
        group_pattern=groups.pattern if groups else "",
        smallest_difference=class_balance.minimum_detectable_difference(classes),
        seconds=round(time.monotonic() - started, 3),
    )


def _searched(search: near_duplicates.SimilaritySearch, firsts: list[thumbnails.ImageInfo]) -> list[Finding]:
    """What the search for near duplicates left out."""
    flat = len(firsts) - len(search.searched_rows)
    if not search.complete:
        text = (
            f"Near duplicates were looked for among {len(search.searched_rows):,} of {len(firsts):,} pictures, or too many were "
            "found to look at all: there are more than are listed."
        )
        return [Finding(severity="warning", kind="searched", text=text)]
    text = f"{pluralize(flat)} without any contrast cannot be compared with others; look whether they show anything."
    return [Finding(severity="warning", kind="searched", text=text)] if flat else []
