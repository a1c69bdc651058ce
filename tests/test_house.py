"""The packages stand as docs/architecture.md draws them: imports run one way, files stay small, nothing names this machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "toolchain"
ORDER = (
    "core", "config", "edge", "data", "models", "training", "pruning", "quantization", "export", "measure", "search",
    "selection", "deploy", "gates", "report", "pipeline", "cli", "__main__",
)  # fmt: skip  # a package imports what stands before it
FENCED = {  # third-party libraries, and the packages that may import them
    "torch_pruning": {"pruning"},
    "torchao": {"quantization"},
    "onnxruntime": {"export", "edge"},
    "openvino": {"export", "edge"},
    "timm": {"models"},
    "sklearn": {"data", "selection"},
    "matplotlib": {"report", "data"},
    "pyarrow": {"data"},
}
DROP_INS = ("data/formats", "pruning/criteria", "export/runtimes", "selection/scores", "deploy/updates", "cli/verbs")
AT_THE_TOP = {"__init__", "__main__", "pipeline", "sweep", "api"}
LONGEST_FILE = 380
LONGEST_PIPELINE = 60
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(path: Path, *, type_checking: bool) -> Iterator[ast.AST]:
    """All nodes of a file; those under `if TYPE_CHECKING` only where asked for."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not type_checking:
            continue
        yield node
        nodes.extend(ast.iter_child_nodes(node))


def imported(path: Path, *, type_checking: bool = True) -> set[str]:
    """Full dotted names that a file imports, wherever in it."""
    names = set()
    for node in statements(path, type_checking=type_checking):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way_and_libraries_stay_inside_their_fence(path: Path) -> None:
    if path.name == "__init__.py":
        assert path.read_text() == ""
        return
    package = package_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "toolchain" and len(parts) > 1:
            assert ORDER.index(parts[1]) <= ORDER.index(package), f"{path.name} imports {name}, which stands above it"
        if parts[0] in FENCED:
            assert package in FENCED[parts[0]], f"{path.name} imports {parts[0]}; only {FENCED[parts[0]]} may"


def test_every_package_is_in_the_order() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages - set(ORDER) <= {"recipes"}  # data that is found by name


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {
        name: {
            ".".join(part) for n in imported(path, type_checking=False) for part in (n.split("."), n.split(".")[:-1])
        }
        & MODULES.keys() - {name}
        for name, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as reason:
        pytest.fail(f"these modules import each other: {' -> '.join(reason.args[1])}")


def test_drop_ins_do_not_know_each_other() -> None:
    for folder in DROP_INS:
        prefix = f"toolchain.{folder.replace('/', '.')}."
        modules = tuple(f"{prefix}{path.stem}" for path in (PACKAGE / folder).glob("[!_]*.py"))  # not packages in it
        for path in (PACKAGE / folder).glob("*.py"):
            assert not [name for name in imported(path, type_checking=False) if name.startswith(modules)], path


def test_little_lies_outside_of_the_packages() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= AT_THE_TOP


def test_the_pipeline_fits_on_one_screen() -> None:
    tree = ast.parse((PACKAGE / "pipeline.py").read_text())
    export = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "export")
    assert export.end_lineno is not None
    assert export.end_lineno - export.body[1].lineno < LONGEST_PIPELINE
    assert not [
        node for node in ast.walk(export) if isinstance(node, ast.FunctionDef | ast.Lambda) and node is not export
    ]
    assert not re.findall(r"\[-?\d+\]", ast.unparse(export)), "nothing is found by its position"


def test_run_names_the_entry_points_of_steps_alone() -> None:
    called = set(re.findall(r"\b(\w+)\.run\(", (PACKAGE / "pipeline.py").read_text()))
    for name, path in MODULES.items():
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert "run" not in functions or name.rpartition(".")[2] in called, (
            f"{name}.run needs a name that says what it does"
        )


def test_files_stay_small_enough_to_read() -> None:
    long = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > LONGEST_FILE}
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path.name for path in FILES if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def defined(path: Path) -> set[str]:
    """Names that a module defines itself, without those that it imports."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def patched(path: Path) -> Iterator[tuple[str, str, int]]:
    """Module, name and line of everything that a test patches in one of ours."""
    tree = ast.parse(path.read_text())
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("toolchain")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"):
            continue
        if len(node.args) < 2:
            continue
        where, name = node.args[0], node.args[1]
        root = where
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(where, ast.Constant) and str(where.value).startswith("toolchain."):
            yield *str(where.value).rpartition(".")[::2], node.lineno
        elif isinstance(root, ast.Name) and modules.get(root.id) in MODULES and isinstance(name, ast.Constant):
            through = ast.unparse(where).partition(".")[2]
            yield modules[root.id], f"{through}.{name.value}" if through else str(name.value), node.lineno


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_patch_names_where_they_are_defined(path: Path) -> None:
    for module, name, line in patched(path):
        first = name.partition(".")[0]
        assert first in defined(MODULES[module]), f"line {line} patches {name} in {module}, which does not define it"


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
