"""The workflows in docs/ci: what they run runs, with `toolchain` played by a script, and they name only what exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from toolchain.cli import main

EXAMPLES = sorted((ROOT / "docs" / "ci").iterdir())


def script(text: str) -> str:
    """What the gate's step runs, without its indentation."""
    lines = text.splitlines()
    last = next(i for i, line in enumerate(lines) if "toolchain gate --target" in line)
    if lines[last].strip().startswith("- "):
        return lines[last].strip()[2:]
    first = max(i for i, line in enumerate(lines[:last]) if line.strip().endswith("|"))
    indent = len(lines[last]) - len(lines[last].lstrip())
    block = []
    for line in lines[first + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            break
        block.append(line[indent:])
    return "\n".join(block)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_a_regression_is_red_and_what_cannot_be_told_is_not(example: Path, status: int, tmp_path: Path) -> None:
    stub = tmp_path / "toolchain"
    stub.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {status}\n')
    stub.chmod(0o700)
    variables = {"TARGET": "cpu", "RECIPE": "digits", "DATA": "photos"}
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    command = ["bash", "-e", "-c", script(example.read_text())]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True)
    orange = 0 if "github" in example.name else 3  # GitLab allows that status to fail, GitHub has nothing in between
    assert ended.returncode == (orange if status == 3 else status)
    assert (tmp_path / "asked").read_text() == "gate --target cpu --recipe digits --data photos --attempts 3\n"
    assert ("exit_codes: 3" in example.read_text()) == (orange == 3)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_name_verbs_flags_and_files_that_exist(example: Path) -> None:
    text = example.read_text()
    for verb, rest in re.findall(r"^\s*-?\s*(?:run: )?toolchain (\w+)((?: .*)?)$", text, flags=re.MULTILINE):
        usage = CliRunner().invoke(main.app, [verb, "--help"], env={"COLUMNS": "200"}).output
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in usage, (verb, flag)
    for name in re.findall(r"out/gate/\$TARGET/(\S+)", text):
        assert name in (ROOT / "toolchain" / "report" / "pages" / "gate.py").read_text()
    assert "toolchain gate" in text
    assert "\t" not in text
