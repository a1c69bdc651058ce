"""One new file is all that a drop-in takes: a toy of each kind, put into its folder, is found and used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, draw

CRITERION = '''
"""Ranks channels by their number."""

from torch import Tensor, arange

from toolchain.pruning.groups import PruningGroup

NEEDS = ()


def score(group: PruningGroup) -> Tensor:
    return arange(group.channels, dtype=float).float()
'''
SCORE = '''
"""Scores every model alike."""

from toolchain.models.frozen_features import FrozenFeatures

NEEDS = ()


def score(train: FrozenFeatures, held: FrozenFeatures) -> float:
    return 1.0
'''
SOURCE = '''
"""Two classes of plain images."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("dark", "light")


def write(folder: Path) -> None:
    for label, level in zip(CLASSES, (20, 220), strict=True):
        for number in range(12):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), level + number, np.uint8)).save(path)
'''
UPDATES = '''
"""An update system that takes the archive as it is."""

from collections.abc import Mapping
from pathlib import Path


def build(package, out: Path, signer) -> Mapping[str, Path]:
    out.mkdir(parents=True, exist_ok=True)
    (out / "toy.img").write_text("toy")
    return {"image": out / "toy.img"}
'''
VERB = '''
"""`toolchain toy-verb`: says hello."""

import typer

PANEL = "Toys"


def toy_verb(name: str = "you") -> None:
    """Say hello."""
    typer.echo(f"hello {name}")
'''
SECTION = '''
"""A report section with one row."""

from toolchain.report import html_page
from toolchain.report.table import Table

TITLE = "A toy section"
ORDER = 5
TERMINAL_ORDER = 9


def tabulate(report) -> Table:
    return Table(columns=("Toy", "Value"), rows=(("ball", str(report["recipe"])),))


def render_html(report) -> tuple[str, ...]:
    return (html_page.render_table(tabulate(report)),)
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a toy of each kind in it."""
    root = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("toolchain", "targets", "calibration"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    package = root / "toolchain"
    for place, text in {
        "pruning/criteria/by_number.py": CRITERION, "selection/scores/alike.py": SCORE, "data/sources/plain.py": SOURCE,
        "deploy/updates/toy.py": UPDATES, "cli/verbs/toy_verb.py": VERB, "report/sections/toy.py": SECTION,
    }.items():  # fmt: skip
        (package / place).write_text(text.lstrip())
    runtime = (package / "export/runtimes/onnxruntime.py").read_text()
    runtime = runtime.replace("runtimes import onnxruntime", "runtimes import copied")
    (package / "export/runtimes/copied.py").write_text(runtime)
    (root / "targets/toy.toml").write_text('schema = 1\ndescription = "a toy"\nruntime = "copied"\n')
    (root / "calibration/toys.toml").write_text(
        'schema = 1\ndescription = "toys"\nsource = "plain"\nmode = "gray"\nimage_size = [32, 32]\nclasses = ["dark", "light"]\n'
    )
    return root


def python(tree: Path, code: str) -> str:
    """What a program prints that imports the package of `tree`."""
    environment = {"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "HOME": str(tree)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tree, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_criterion_prunes(tree: Path) -> None:
    code = """
import torch
from toolchain.core import registry
from toolchain.pruning import groups
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1), torch.nn.Flatten())
group = next(g for g in groups.find(net, torch.zeros(1, 3, 3, 3), "2") if g.channels == 8)
print("by_number" in registry.list_modules("criteria"), registry.load_module("criteria", "by_number").score(group).tolist())
from toolchain.config import read_config
from toolchain.config.recipe import PruneSpec
read_config.validate("recipes", {"name": "r", "domain": "d", "model": {"name": "resnet18"}, "prune": {"criterion": "by_number"}}, "here")
"""
    assert python(tree, code).startswith("True [0.0, 1.0, 2.0")


def test_a_runtime_and_a_target_compile_and_run(tree: Path) -> None:
    code = """
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper
from toolchain.config import read_config
from toolchain.export.runtime import load_runtime
target = read_config.read_target("toy")
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 4, 4)) for name in ("input", "logits")]
body = helper.make_graph([helper.make_node("Relu", ["input"], ["logits"])], "g", ends[:1], ends[1:])
model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
Path("relu.onnx").write_bytes(model.SerializeToString())
runtime = load_runtime(target.runtime)
artefact = runtime.compile(Path("relu.onnx"), Path("made"))
session = runtime.open(artefact.path, threads=1, precision="f32")
print(target.runtime, float(session.run(np.full((1, 3, 4, 4), -1, np.float32)).max()))
"""
    assert python(tree, code) == "copied 0.0\n"


def test_a_score_is_computed_beside_the_others(tree: Path) -> None:
    code = """
from toolchain.core import registry
print("alike" in registry.list_modules("scores"), registry.load_module("scores", "alike").score(None, None))
"""
    assert python(tree, code) == "True 1.0\n"


def test_a_data_source_is_a_dataset(tree: Path) -> None:
    code = """
from pathlib import Path
from toolchain.config import read_config
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset
shown = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)
dataset = decoded_dataset.load(read_config.read_domain("toys"), shown, Path("cache"))
print(dataset.classes, sum(len(images) for images in dataset.splits.values()))
"""
    assert python(tree, code).splitlines()[-1] == "('dark', 'light') 24"


def test_a_report_section_is_in_terminal_markdown_and_html(tree: Path, tmp_path: Path) -> None:
    report = {
        "schema": 1,
        "recipe": "solar",
        "target": "cpu",
        "variants": [],
        "verdicts": [],
        "shipped": None,
        "candidate": "dense-fp32",
    }
    (tree / "run").mkdir(exist_ok=True)
    (tree / "run" / "report.json").write_text(json.dumps(report))
    printed = python(
        tree, "import sys\nsys.argv = ['toolchain', 'report', 'run']\nfrom toolchain.cli import main\nmain.main()"
    )
    assert "ball" in printed
    assert "## A toy section" in (tree / "run" / "report.md").read_text()
    assert "<h2>A toy section</h2>" in (tree / "run" / "report.html").read_text()


def test_an_update_system_is_accepted_by_package(tree: Path) -> None:
    code = """
from pathlib import Path
from toolchain.core import registry
print(dict(registry.load_module("updates", "toy").build(None, Path("packed"), None)))
"""
    assert "toy.img" in python(tree, code)


def test_a_verb_is_a_command(tree: Path) -> None:
    run = "import sys\nsys.argv = ['toolchain', {}]\nfrom toolchain.cli import main\nmain.main()"
    assert python(tree, run.format("'toy-verb', '--name', 'board'")) == "hello board\n"
    assert "Toys" in python(tree, run.format("'--help'"))


def test_a_target_is_listed(tree: Path) -> None:
    draw(tree / "unused", {"ant": 1})
    assert "a toy" in python(
        tree, "import sys\nsys.argv = ['toolchain', 'targets']\nfrom toolchain.cli import main\nmain.main()"
    )


def test_the_figure_of_the_architecture_is_what_the_code_gives() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import draw_architecture as d; print(d.FIGURE.read_text() == d.draw())"],
        capture_output=True, text=True, cwd=ROOT / "scripts", check=True,
    )  # fmt: skip
    assert ended.stdout == "True\n", "run python scripts/draw_architecture.py and commit docs/architecture.svg"
