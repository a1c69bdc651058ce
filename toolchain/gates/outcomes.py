"""What each outcome of a check does in each verb: whether it blocks, and with which exit status. docs/outcomes.md has the table.

Only `pass` counts as passing. `export` has chosen on validation already, so a check that the test split is too small to
decide does not block shipping; a gate exists to block, so there everything but `pass` ends with its own exit status.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from toolchain.gates.verdict import Outcome

Verb = Literal["export", "gate"]
EXIT_STATUS: Mapping[Verb, Mapping[Outcome, int]] = {  # the most severe outcome first
    "export": {"fail": 1, "not_measured": 0, "cannot_tell": 0, "pass": 0},
    "gate": {"fail": 1, "not_measured": 2, "cannot_tell": 3, "pass": 0},
}


def worst(verb: Verb, outcomes: Iterable[Outcome]) -> Outcome:
    """Return the most severe outcome; `pass` where there is none."""
    present = set(outcomes)
    return next((outcome for outcome in EXIT_STATUS[verb] if outcome in present), "pass")


def exit_status(verb: Verb, outcomes: Iterable[Outcome]) -> int:
    """Return the exit status of a verb from the outcomes of its checks."""
    return EXIT_STATUS[verb][worst(verb, outcomes)]


def summarize(outcomes: Iterable[Outcome]) -> str:
    """Return the counts in words: "3 of 5 checks pass, 1 cannot be decided, 1 was not measured"."""
    counted = list(outcomes)
    wordings: Mapping[Outcome, tuple[str, str]] = {
        "fail": ("fails", "fail"),
        "cannot_tell": ("cannot be decided", "cannot be decided"),
        "not_measured": ("was not measured", "were not measured"),
    }
    parts = [f"{counted.count('pass')} of {len(counted)} checks pass"]
    for outcome, (singular, plural) in wordings.items():
        if count := counted.count(outcome):
            parts.append(f"{count} {singular if count == 1 else plural}")
    return ", ".join(parts)
