"""`toolchain check-model`: exit status, the files that it leaves, and one message for everything that is wrong with the input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLCHAIN = [sys.executable, "-m", "toolchain", "check-model"]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, 2, 1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

class Fixed(Net):
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)).view(1, 32))

def build():
    return Net()

def fixed():
    return Fixed()
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOOLCHAIN, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_an_own_model_is_checked_and_the_result_is_left_in_all_forms(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    ended = run("--model", "net.py:build", "--image-size", "32x48", "--target", "arm64", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Can be pruned" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80
    folder = tmp_path / "out" / "check-model" / "net.py-build" / "arm64"
    written = json.loads((folder / "check-model.json").read_text())
    assert (written["schema"], written["classes"], written["image_size"]) == (1, 4, [32, 48])
    assert {"inputs", "runs", "traces", "prunable", "latency"} <= {entry["check"] for entry in written["findings"]}
    assert "net.py:build" in (folder / "check-model.html").read_text()


def test_what_blocks_is_status_1_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    ended = run("--model", "net.py:fixed", "--image-size", "32", "--classes", "7", cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "Blocked: batch, traces" in ended.stdout
    assert "net.py, line 16:" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no model to check; give --model"),
        (["--model", "auto"], "check one model at a time"),
        (["--model", "resnet81"], "did you mean 'resnet18'"),
        (["--model", "nowhere.py:build"], "nowhere.py does not exist"),
        (["--model", "net.py:make"], "net.py has no function 'make'"),
        (["--model", "resnet18", "--image-size", "wide"], "HEIGHTxWIDTH"),
        (["--model", "resnet18", "--target", "cup"], "did you mean 'cpu'"),
        (["--model", "resnet18", "--weights", "none.pth"], "none.pth does not exist"),
        (["--recipe", "digit"], "did you mean 'digits'"),
    ],
    ids=("nothing", "auto", "name", "file", "function", "size", "target", "weights", "recipe"),
)
def test_wrong_input_is_one_message_and_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    ended = run(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error:") == 1
