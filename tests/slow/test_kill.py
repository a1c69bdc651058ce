"""A run that is killed again and again, without warning, ends with the same trained weights as one that is not."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw

RECIPE = """
schema = 1
domain = "image-folder"
image_size = [32, 32]
[model]
name = "squeezenet1_1"
weights = "zoo:squeezenet1_1_glyphs"
[adapt]
epochs = 6
batch_size = 8
learning_rate = 1e-3
[prune]
ratio = 0.4
criterion = "magnitude" # these pictures are so easy that gradients vanish
[recover]
epochs = 6
batch_size = 8
learning_rate = 1e-3
distill = 0.5
[quantize]
search_seconds = 0 # what is found by timing may differ between two runs; what is trained may not
[quantize.train]
epochs = 3
batch_size = 8
learning_rate = 1e-4
[budget]
accuracy_drop = 0.9
"""
KILLS = 8


@pytest.mark.slow
def test_killed_runs_continue_to_the_same_weights(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", {"ant": 40, "bee": 40, "cat": 40})
    (tmp_path / "own.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "toolchain", "export", "--recipe", "own.toml", "--data", "pictures"]
    whole = subprocess.run([*command, "--out", "whole"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    moments = random.Random(11)
    for _ in range(KILLS):
        with subprocess.Popen(
            [*command, "--out", "cut"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            try:
                run.wait(moments.uniform(6, 18))  # importing torch alone takes a few seconds
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
    last = subprocess.run([*command, "--out", "cut"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    for stage in ("adapt", "recover", "quantize"):
        kept = {
            p.parent.name: p.read_bytes() for p in (tmp_path / "whole" / "work" / stage).glob("*/weights.safetensors")
        }
        again = {
            p.parent.name: p.read_bytes() for p in (tmp_path / "cut" / "work" / stage).glob("*/weights.safetensors")
        }
        assert kept
        assert kept == again
    assert not list((tmp_path / "cut").rglob("*.tmp"))
    ended = subprocess.run(
        [sys.executable, "cut/own/cpu/bundle/run.py", "--self-test"], cwd=tmp_path, capture_output=True, check=False
    )
    assert ended.returncode == 0


@pytest.mark.slow
def test_an_orderly_stop_says_that_nothing_is_lost(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", {"ant": 40, "bee": 40, "cat": 40})
    (tmp_path / "own.toml").write_text(RECIPE.replace("epochs = 6", "epochs = 500"))
    command = [
        sys.executable,
        "-m",
        "toolchain",
        "export",
        "--recipe",
        "own.toml",
        "--data",
        "pictures",
        "--out",
        "out",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while "epoch 2/" not in run.stdout.readline():
            pass
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "kept" in said
    assert "Traceback" not in said
