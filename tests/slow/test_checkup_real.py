"""The examination finds in the real sets what is known to be wrong with them, and nothing that is not."""

import dataclasses
from pathlib import Path

import pytest

from toolchain.config import read_config
from toolchain.data.checks import run_checks
from toolchain.data.checks.finding import DatasetCheck

CONFLICTS = {
    (161, 4518),
    (543, 5171),
    (483, 6888),
    (3915, 7027),
    (1124, 7387),
    (450, 7484),
}  # ../shared/data: SOURCE.md
ENCODED_AGAIN = {(4616, 10147), (5687, 15571), (1448, 16999), (1594, 13046)}  # looked at: the same module and moment
TAKEN_TWICE = {(457, 553), (522, 534), (68, 74), (56, 540), (99, 147)}  # looked at: the same thing, moved a little


def pairs(checkup: DatasetCheck, *, exact: bool) -> set[tuple[int, ...]]:
    """Numbers of the files that are copies of one another."""
    groups = (group for group in checkup.copies if group.exact == exact)
    return {
        tuple(sorted(int("".join(filter(str.isdigit, Path(m.file).stem))) for m in group.members)) for group in groups
    }


@pytest.mark.slow
def test_all_known_copies_of_the_solar_modules_are_found(sets: Path, tmp_path: Path) -> None:
    domain = dataclasses.replace(read_config.read_domain("solar"), path=str(sets / "infrared_solar_modules"))
    checkup = run_checks.check_dataset(domain, tmp_path)
    exact = pairs(checkup, exact=True)
    assert len(exact) == 22
    assert sum(len(group) - 1 for group in exact) == 22
    conflicting = [group for group in checkup.copies if group.exact and group.has_label_conflict]
    assert {tuple(sorted(int(Path(m.file).stem) for m in group.members)) for group in conflicting} == CONFLICTS
    assert pairs(checkup, exact=False) == ENCODED_AGAIN
    assert not any(group.crosses_splits for group in checkup.copies)  # identical pixels share a split there
    (runs,) = [finding for finding in checkup.findings if finding.kind == "running numbers"]
    assert "No-Anomaly (" in runs.text  # pictures of one flight
    assert checkup.group_pattern == ""
    assert checkup.searched == 19_978


@pytest.mark.slow
def test_things_photographed_twice_are_found(sets: Path, tmp_path: Path) -> None:
    domain = dataclasses.replace(read_config.read_domain("trashnet"), path=str(sets / "trashnet"))
    checkup = run_checks.check_dataset(domain, tmp_path)
    assert pairs(checkup, exact=True) == set()
    assert pairs(checkup, exact=False) == TAKEN_TWICE
    assert {m.label for group in checkup.copies for m in group.members} == {"paper"}
    assert sum(group.crosses_splits for group in checkup.copies) == 4
