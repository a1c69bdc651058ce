"""Run every check of a labelled image dataset, before anything is trained on it.

No check stops at the first bad file, and none needs a model. Every file is read once; duplicates are searched among
thumbnails.
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
    statistical_power,
    thumbnails,
)
from toolchain.data.checks.finding import SEVERITIES, DatasetCheck, Finding
from toolchain.data.checks.wording import pluralize, to_display_path


def check_dataset(
    domain: Domain, cache: Path, *, budget: Budget | None = None, image_size: tuple[int, int] | None = None
) -> DatasetCheck:
    """Check a dataset.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source is written.
        budget: its accuracy drop is compared with what the test split can detect.
        image_size: the network's input (height, width); the domain's own if not given.

    Raises:
        ToolchainError: no folder, or no images in it.
    """
    started = time.monotonic()
    contents = folder_contents.list_contents(domain, cache)
    images = thumbnails.inspect_files(contents.image_files, domain.mode)
    pixel_groups = duplicates.group_by_pixels(images)
    distinct = [group[0] for group in pixel_groups]
    similarity = near_duplicates.search(distinct)
    duplicate_groups = duplicates.sort_by_severity(
        [*duplicates.exact_groups(pixel_groups), *duplicates.near_groups(pixel_groups, similarity)]
    )
    classes = class_balance.count_classes(contents.image_files, contents.classes)
    groups = exposure_groups.find(domain, distinct, similarity)
    findings = [
        *contents.findings,
        *image_files.check(images, domain, image_size or domain.image_size),
        *duplicates.check(duplicate_groups, Counter(file.split for file in contents.image_files)),
        *exposure_groups.check(groups, has_own_splits=contents.has_own_splits),
        *([] if groups else consecutive_frames.check(consecutive_frames.find(distinct, similarity))),
        *class_balance.check(classes),
        *statistical_power.check(classes, budget),
        *_check_search(similarity, distinct),
    ]
    return DatasetCheck(
        domain=domain.name,
        folder=to_display_path(contents.root),
        mode=domain.mode,
        pictures=sum(not image.problem for image in images),
        unreadable=sum(bool(image.problem) for image in images),
        ignored=len(contents.ignored_files),
        classes=classes,
        sizes=image_files.count_sizes(images),
        modes=dict(Counter(image.mode for image in images if not image.problem).most_common()),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        copies=duplicate_groups,
        searched=len(similarity.searched_rows),
        group_pattern=groups.pattern if groups else "",
        smallest_difference=statistical_power.minimum_detectable_difference(classes),
        seconds=round(time.monotonic() - started, 3),
    )


def _check_search(similarity: near_duplicates.SimilaritySearch, distinct: list[thumbnails.ImageInfo]) -> list[Finding]:
    """Report images that the search for near-duplicates left out."""
    flat = len(distinct) - len(similarity.searched_rows)
    if not similarity.complete:
        text = (
            f"Near-duplicates were searched among {len(similarity.searched_rows):,} of {len(distinct):,} images, or there "
            "were too many to compare them all: there may be more than are listed."
        )
        return [Finding(severity="warning", kind="searched", text=text)]
    text = f"{pluralize(flat)} without any contrast cannot be compared with others. Check whether such images show anything."
    return [Finding(severity="warning", kind="searched", text=text)] if flat else []
