"""A run that is killed again and again, without warning, ends with the same weights and archive as one that is not."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw

from toolchain.edge import archive as archives

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
KILLS = int(os.environ.get("KILLS", "8"))  # 100, run by hand: docs/results.md


@pytest.mark.slow
def test_killed_runs_continue_to_the_same_weights_and_the_same_archive(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", {"ant": 40, "bee": 40, "cat": 40})
    (tmp_path / "own.toml").write_text(RECIPE)

    def export(out: str, *others: str) -> list[str]:
        command = ["export", "--recipe", "own.toml", "--data", "pictures", "--out", out, *others]
        return [sys.executable, "-m", "toolchain", *command]

    def done(command: list[str]) -> None:
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr

    done(export("first"))
    locked = "--lock", shutil.copy(tmp_path / "first/own/cpu/own.cpu.lock.json", tmp_path / "own.lock.json")
    done(export("whole", *locked))
    moments, cut, killed = random.Random(11), tmp_path / "cut", 0
    while killed < KILLS:
        with subprocess.Popen(
            export("cut", *locked), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            try:
                assert run.wait(moments.uniform(4, 16)) == 0  # importing torch alone takes a few seconds
                same(tmp_path / "whole", cut)
                shutil.rmtree(cut)  # so that the next ones are hit while they train, too
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                killed += 1
        if (archive := cut / "own/cpu/bundle.tar").exists():
            shutil.rmtree(looked := tmp_path / "looked", ignore_errors=True)
            archives.unpack(archive, looked)
        if (bundle := cut / "own/cpu/bundle").exists():
            done([sys.executable, str(bundle / "run.py"), "--self-test"])
    done(export("cut", *locked))
    same(tmp_path / "whole", cut)
    done([sys.executable, "cut/own/cpu/bundle/run.py", "--self-test"])


def same(whole: Path, cut: Path) -> None:
    """Asserts that a run that was cut trained what the whole one did, shipped the same bytes and left nothing behind."""
    for stage in ("adapt", "recover", "quantize"):
        kept, again = (
            {p.parent.name: p.read_bytes() for p in (out / "work" / stage).glob("*/weights.safetensors")}
            for out in (whole, cut)
        )
        assert kept
        assert kept == again
    name = "own/cpu/bundle.tar"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert not list(cut.rglob("*.tmp"))


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
