"""What each outcome does in each verb: the same table as docs/outcomes.md."""

import re

import pytest
from conftest import ROOT

from toolchain.gates import outcomes
from toolchain.gates.verdict import Outcome


@pytest.mark.parametrize(
    ("present", "export", "gate"),
    [
        (["pass", "pass"], 0, 0),
        (["pass", "cannot_tell"], 0, 3),
        (["pass", "not_measured"], 0, 2),
        (["cannot_tell", "not_measured"], 0, 2),
        (["cannot_tell", "fail", "not_measured"], 1, 1),
        ([], 0, 0),
    ],
)
def test_the_worst_outcome_decides(present: list[Outcome], export: int, gate: int) -> None:
    assert (outcomes.exit_status("export", present), outcomes.exit_status("gate", present)) == (export, gate)


def test_only_pass_counts_as_passing() -> None:
    text = outcomes.summarize(["pass", "cannot_tell", "not_measured", "not_measured", "fail"])
    assert text == "1 of 5 checks pass, 1 fails, 1 cannot be decided, 2 were not measured"
    assert outcomes.summarize(["pass"] * 3) == "3 of 3 checks pass"


def test_the_documented_table_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d) \|.*\| (\d) \|$", (ROOT / "docs/outcomes.md").read_text(), re.MULTILINE)
    documented = {name: (int(export), int(gate)) for name, export, gate in rows}
    assert documented == {
        outcome: (outcomes.EXIT_STATUS["export"][outcome], status)
        for outcome, status in outcomes.EXIT_STATUS["gate"].items()
    }
