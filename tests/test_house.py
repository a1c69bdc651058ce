"""The house stands as DESIGN draws it: imports run downward, rooms stay small, and nothing names this machine."""

import ast
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "toolchain"
ORDER = (
    "core",
    "config",
    "edge",
    "data",
    "models",
    "tasks",
    "training",
    "pruning",
    "quantization",
    "export",
    "measure",
    "search",
    "selection",
    "deploy",
    "gates",
    "report",
    "pipeline",
    "cli",
    "__main__",
)  # a package imports what stands before it
FENCED = {
    "torch_pruning": {"pruning"},
    "torchao": {"quantization"},
    "onnxruntime": {"export", "edge"},
    "openvino": {"export", "edge"},
    "timm": {"models"},
    "sklearn": {"data", "selection"},
    "matplotlib": {"report", "data"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return ORDER.index(name)


def imported(path: Path) -> set[str]:
    """Full dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    if path.name == "__init__.py":
        assert path.read_text() == ""
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "toolchain" and len(parts) > 1 and parts[1] != room(path):
            assert rank(parts[1]) <= rank(room(path)), f"{path.name} imports {name}, which stands above it"
        if parts[0] in FENCED:
            assert room(path) in FENCED[parts[0]], f"{path.name} imports {parts[0]}; only {FENCED[parts[0]]} may"


def test_drop_in_rooms_do_not_know_each_other() -> None:
    for folder in ("pruning/criteria", "export/runtimes", "selection/scores"):
        for path in (PACKAGE / folder).glob("*.py"):
            assert not [
                name for name in imported(path) if name.startswith(f"toolchain.{folder.replace(chr(47), chr(46))}")
            ]


def test_files_stay_small_enough_to_read() -> None:
    long = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 380}
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path.name for path in FILES if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_nothing_committed_names_this_machine() -> None:
    listed = (
        subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=ROOT, check=True).stdout.decode().split("\0")
    )
    forbidden = (
        str(ROOT).encode(),
        b"/" + b"root/",
        b"/" + b"opt/wheels",
        b"pypi" + b".org",
        b"files.python" + b"hosted",
    )
    named = {
        name: [word for word in forbidden if word in (ROOT / name).read_bytes()]
        for name in listed
        if name and (ROOT / name).is_file()
    }
    assert {name: words for name, words in named.items() if words} == {}
