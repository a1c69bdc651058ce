"""docs/own-model.md, command by command: from net.py and net.pth to a bundle that classifies."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "own-model.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", "set -eu\n" + "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert '"verdict": "PASS"' in ended.stdout or "golden" in ended.stdout
    labelled = json.loads((tmp_path / "out/trained/cpu/report.json").read_text())
    dense = next(row for row in labelled["variants"] if row["name"] == "dense-fp32")
    assert dense["accuracy"] > 0.9  # the classes are in the checkpoint's order
    unlabelled = json.loads((tmp_path / "out-unlabelled/trained/openvino/report.json").read_text())
    dense = next(row for row in unlabelled["variants"] if row["name"] == "dense-fp32")
    assert dense["accuracy"] == 1.0  # agreement with itself
    predictions = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"file": "digits/seven')]
    assert len(predictions) > 100
    assert sum(row["class"] == "seven" for row in predictions) > 0.9 * len(predictions)
