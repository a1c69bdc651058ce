"""The wheel works in somebody else's repository: shipped data is found, the repository's own comes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_an_installed_wheel_finds_its_data_and_the_users(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, str(tmp_path), str(ROOT)], check=True, capture_output=True)
    made = next(tmp_path.glob("*.whl"))
    site, theirs = tmp_path / "site", tmp_path / "theirs"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(made)]
    subprocess.run(install, check=True, capture_output=True)
    (theirs / "targets").mkdir(parents=True)
    (theirs / "targets" / "camera.toml").write_text('description = "their own"\nruntime = "onnxruntime"\nthreads = 2\n')

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
        command = [sys.executable, "-m", "toolchain", *arguments]
        return subprocess.run(command, cwd=theirs, env=environment, check=True, capture_output=True, text=True).stdout

    listed = run("targets")
    assert "their own" in listed
    assert "openvino" in listed
    assert str(site.name) in listed  # found in the installed package, not in this checkout
    quick = ["--epochs", "1", "--image-size", "32x32", "--ratio", "0.2"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "toolchain", "export", "--target", "camera", *quick]
    ended = subprocess.run(command, cwd=theirs, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode in {0, 1}, ended.stderr
    assert (theirs / "out" / "digits" / "camera" / "report.html").exists()
