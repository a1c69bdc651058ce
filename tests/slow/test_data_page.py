"""The examples of docs/data.md run as they stand there, one after the other; all formats give the same counts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "data.md"
SETTING = """
set -e
pip() { true; }
python() { "$PYTHON" "$@"; }
toolchain() { "$PYTHON" -m toolchain "$@"; }
"""


def test_the_examples_can_be_pasted(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra [hf]")
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    ended = subprocess.run(
        ["bash", "-c", SETTING + "".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    read = [line for line in ended.stdout.splitlines() if " is read as " in line]
    titles = [line.split(" is read as ")[1].split(":")[0].split(" (")[0] for line in read]
    assert titles == [
        "class folders", "CSV", "CSV", "split lists", "a Hugging Face imagefolder", "1 parquet shard",
    ]  # fmt: skip
    assert all("2 classes, 360 images" in line for line in read)
