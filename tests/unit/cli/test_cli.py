"""The command line: fast help, one message and the right exit status for everything a user can get wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, draw

TOOLCHAIN = [sys.executable, "-m", "toolchain"]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOOLCHAIN, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom toolchain.cli import main as cli\nfrom typer.testing import CliRunner\n"
    code += "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
    code += "print([m for m in ('torch', 'scipy', 'matplotlib', 'onnx', 'numpy', 'pydantic') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "verb", ["export", "adapt", "check-data", "targets", "recipes", "domains", "schema", "report", "parity"]
)
def test_every_verb_has_help(verb: str) -> None:
    ended = run(verb, "--help")
    assert ended.returncode == 0
    assert "Usage" in ended.stdout


def test_targets_say_what_they_are_for() -> None:
    ended = run("targets")
    assert "openvino" in ended.stdout
    assert "embedded default" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--target", "cup"], "did you mean 'cpu'"),
        (["export", "--recipe", "digit"], "did you mean 'digits'"),
        (["export", "--recipe", "nowhere.toml"], "nowhere.toml does not exist"),
        (["export", "--recipe", "solar"], "give one with DATA=folder"),
        (["export", "--data", "nowhere"], "image folder nowhere does not exist"),
        (["export", "--image-size", "wide"], "HEIGHTxWIDTH"),
        (["export", "--image-size", "6x6"], "each between 8 and 4096"),
        (["select", "--image-size", "6x6"], "each between 8 and 4096"),
        (["select", "--on-corrupt", "maybe"], "on_corrupt"),
        (
            ["export", "--budget", "accuracy=0.02"],
            "--budget 'accuracy=0.02': give KEY=VALUE, with one of accuracy_drop",
        ),
        (["export", "--budget", "speedup"], "--budget 'speedup': give KEY=VALUE"),
        (["export", "--budget", "size=small"], "budget.size = 'small'"),
        (["export", "--budget", "dense_float=perhaps"], "budget.dense_float"),
        (["adapt", "--model", "auto"], "name a model"),
        (["export", "--model", "auto", "--weights", "own.pth"], "every candidate brings its own"),
        (["adapt", "--balance", "2"], "balance = 2.0"),
        (["check-data", "--data", "nowhere"], "image folder nowhere does not exist"),
        (["check-data", "--source", "glyph"], "did you mean 'glyphs'"),
        (["schema", "recipe"], "did you mean 'recipes'"),
        (["report", "nowhere"], "cannot read nowhere"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if arguments[0] in {"export", "adapt", "check-data", "select"} else []
    ended = run(*arguments, *out)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error:") == 1


def test_an_output_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = run("export", "--out", str(tmp_path / "file" / "out"))
    assert ended.returncode == 2
    assert "cannot write" in ended.stderr


def test_a_foreign_checkpoint_is_refused_before_any_training(tmp_path: Path) -> None:
    draw(tmp_path / "set", {"ant": 12, "bee": 12})
    zoo = ROOT / "toolchain" / "models" / "zoo" / "squeezenet1_1_glyphs.safetensors"
    arguments = ["--recipe", "trashnet", "--data", str(tmp_path / "set"), "--weights", str(zoo), "--image-size", "32"]
    ended = run("export", *arguments, "--out", str(tmp_path / "out"))
    assert ended.returncode == 2
    assert "does not fit mobilenet_v2" in ended.stderr


def test_check_data_finds_a_leak_and_says_so_in_all_three_forms(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set" / "train", {"ant": 12, "bee": 12})
    draw(tmp_path / "set" / "test", {"ant": 12, "bee": 12}, seed=1)
    shutil.copy(folder / "ant" / "000.png", tmp_path / "set" / "test" / "ant" / "same.png")
    arguments = ["check-data", "--recipe", "image-folder", "--data", str(tmp_path / "set"), "--weights", "none.pth"]
    ended = run(*arguments, "--out", str(tmp_path / "out"))
    assert ended.returncode == 1, ended.stderr
    left = tmp_path / "out" / "check-data" / "image-folder"
    written = json.loads((left / "report.json").read_text())
    for said in (ended.stdout, (left / "report.html").read_text(), json.dumps(written)):
        assert "same.png" in said
    assert "leak" in {finding["kind"] for finding in written["checkup"]["findings"]}
    assert "not measured (weights file none.pth does not exist" in ended.stdout


def say_command(*variables: str) -> str:
    """Return the command that `make export` would run."""
    command, env = ["make", "--dry-run", "export", *variables], {**os.environ, "MAKEFLAGS": ""}
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=env).stdout
    return " ".join(said.split())


def test_make_turns_variables_into_flags() -> None:
    variables = ["TARGET=openvino", "RECIPE=solar", "DATA=a b", "WEIGHTS=w.pth", "OUT=o"]
    said = say_command(*variables, "LATENCY=1.2 ms", "RESOLUTION=0.65", "LOCK=l.json", "RELEASE=7")
    assert '--target "openvino" --recipe "solar" --out "o" --data "a b" --weights "w.pth"' in said
    assert '--latency "1.2 ms" --resolution 0.65 --lock "l.json" --release 7' in said


def test_make_compresses_a_model_that_is_trained_already() -> None:
    said = say_command("COMPRESS_ONLY=1", "MODEL=net.py:build", "LABELS=names.txt", "UNLABELLED=a b")
    assert '--recipe "compress" --out "out" --model "net.py:build"' in said
    assert '--compress-only --labels "names.txt" --unlabelled "a b"' in said
