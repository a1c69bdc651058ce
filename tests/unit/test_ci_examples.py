"""The workflows in docs/ci: what they run runs, with `toolchain` played by a script, and they name only what exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from toolchain import cli

EXAMPLES = sorted((ROOT / "docs" / "ci").iterdir())


def script(text: str) -> str:
    """The block with the gate, without its indentation."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("for attempt in"))
    indent = len(lines[start]) - len(lines[start].lstrip())
    block = []
    for line in lines[start:]:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            break
        block.append(line[indent:])
    return "\n".join(block)


def played(folder: Path, example: Path, *statuses: int) -> tuple[int, int]:
    """Exit status of the block where `toolchain gate` ends with these in turn, and how often it was called."""
    stub = folder / "toolchain"
    stub.write_text(
        f"#!/bin/bash\necho x >> {folder}/calls\ns=({' '.join(map(str, statuses))})\nexit ${{s[$(wc -l < {folder}/calls) - 1]}}\n"
    )
    stub.chmod(0o700)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TARGET": "cpu", "RECIPE": "digits"}
    ended = subprocess.run(
        ["bash", "-e", "-c", script(example.read_text())], env=environment, check=False, capture_output=True
    )
    return ended.returncode, len((folder / "calls").read_text().splitlines())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("statuses", "wanted", "calls"),
    [((0,), 0, 1), ((1,), 1, 1), ((2,), 2, 1), ((3, 0), 0, 2), ((3, 3, 1), 1, 3), ((3, 3, 3), 3, 3)],
)
def test_a_regression_is_red_and_noise_is_tried_again(
    example: Path, statuses: tuple[int, ...], wanted: int, calls: int, tmp_path: Path
) -> None:
    noise = wanted == 3 and "github" in example.name
    assert played(tmp_path, example, *statuses) == (0 if noise else wanted, calls)  # GitHub has no orange: a warning


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_name_verbs_flags_and_files_that_exist(example: Path) -> None:
    text = example.read_text()
    for verb, rest in re.findall(r"^\s*-?\s*(?:run: )?toolchain (\w+)((?: .*)?)$", text, flags=re.MULTILINE):
        usage = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"}).output
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in usage, (verb, flag)
    for name in re.findall(r"out/gate/\$TARGET/(\S+)", text):
        assert name in (ROOT / "toolchain" / "gate_report.py").read_text()
    assert "toolchain gate" in text
    assert "\t" not in text
