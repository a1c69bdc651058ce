"""docs/board.md, command by command, from the clone's own folder; the job itself is the tiny one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, alone
from test_cpp_runner import bundle  # noqa: F401  a fixture

TOOLS = ("cmake", "c++", "openssl", "swupdate", "mender-artifact", "rauc", "mksquashfs")
MISSING = [name for name in TOOLS if not shutil.which(name)]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")
def test_every_command_of_the_page_runs(bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    page = (ROOT / "docs" / "board.md").read_text()
    first, *blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    assert first == "make export TARGET=openvino\n"  # what `.ci/run` does in full
    assert len(blocks) >= 7
    shutil.copytree(bundle.parent, tmp_path / "out/digits/openvino")
    for name in ("runner", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = "set -eu\n" + "\n".join(blocks).replace(". .venv/bin/activate\n", "").replace("store/digits", "store/tiny")
    # sockets in a folder of their own, whose path is short enough for them; of its threads one may end with 1 after the verdict
    script = f"swupdate() {{ TMPDIR=$(mktemp -d -p /tmp) timeout 60 swupdate \"$@\" > swupdate.log 2>&1 || true; grep -q 'SWUPDATE successful' swupdate.log; }}\n{script}"
    with alone("swupdate"):
        ended = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count('"verdict": "PASS"') == 2  # by hand, and by install.sh
    answers = [line for line in ended.stdout.splitlines() if line.startswith('{"file": "picture.png"')]
    assert len(answers) == 4
    assert len(set(answers)) == 1  # of edge-runner, of run.py twice, and of what was installed
    assert "tiny release 0 runs from" in ended.stdout
