"""Draws docs/architecture.svg from the code: the steps of the pipeline, and which package imports which.

`python scripts/draw_architecture.py` after a step or an import between packages has changed; a test fails until then.
"""

import ast
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toolchain"
FIGURE = ROOT / "docs" / "architecture.svg"
ORDER = (  # as tests/test_house.py holds the imports to it
    "core", "config", "edge", "data", "models", "training", "pruning", "quantization", "export", "measure", "search",
    "selection", "deploy", "gates", "report", "pipeline", "cli",
)  # fmt: skip
CELL, LEFT, TOP = 30, 128, 226
STEP_WIDTH, STEP_HEIGHT, STEPS_A_ROW = 156, 46, 5


def read_steps() -> list[tuple[str, str]]:
    """Return every step of `pipeline.export` with the module that does it, in order."""
    tree = ast.parse((PACKAGE / "pipeline.py").read_text())
    packages = {
        alias.name: node.module.removeprefix("toolchain.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("toolchain.")
        for alias in node.names
    }
    export = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "export")
    steps = []
    for node in ast.walk(export):
        if not (isinstance(node, ast.With) and "step" in ast.unparse(node.items[0].context_expr).split("(")[0]):
            continue
        call = node.items[0].context_expr
        assert isinstance(call, ast.Call)
        name = ast.literal_eval(call.args[0])
        called = [
            (call.func.attr != "run", call.func.value.id)  # the step itself before what is checked beside it
            for statement in node.body
            for call in ast.walk(statement)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
        ]
        module = next(module for _, module in sorted(called, key=lambda call: call[0]) if module in packages)
        steps.append((name, f"{packages[module]}/{module}"))
    return steps


def count_imports() -> Counter[tuple[str, str]]:
    """Return how many modules of a package import from another one: (importing, imported) -> modules."""
    counts = Counter[tuple[str, str]]()
    for path in sorted(PACKAGE.rglob("*.py")):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        imported = {
            str(node.module).split(".")[1]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("toolchain.")
        }
        counts.update((package, other) for other in imported - {package} if package in ORDER)
    return counts


def draw() -> str:
    """Return the figure as SVG; the same code gives the same bytes."""
    width = LEFT + CELL * len(ORDER) + 190
    height = TOP + 96 + CELL * len(ORDER) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="15" font-weight="bold">The steps of pipeline.export, and the module of each</text>',
        *_draw_steps(read_steps()),
        f'<text x="16" y="{TOP + 6}" font-size="15" font-weight="bold">Which package imports which (number of modules)</text>',
        f'<text x="16" y="{TOP + 26}" fill="#5b6570">A row imports from its columns. Nothing lies above the diagonal: '
        "a package imports only what stands before it.</text>",
        *_draw_matrix(count_imports()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _draw_steps(steps: list[tuple[str, str]]) -> list[str]:
    parts = []
    for index, (name, module) in enumerate(steps):
        row, column = divmod(index, STEPS_A_ROW)
        x, y = 16 + column * (STEP_WIDTH + 6), 42 + row * (STEP_HEIGHT + 8)
        parts.append(f'<rect x="{x}" y="{y}" width="{STEP_WIDTH}" height="{STEP_HEIGHT}" rx="6" fill="#e8f3f3"/>')
        parts.append(f'<text x="{x + 10}" y="{y + 19}" font-weight="bold">{index + 1}. {escape(name)}</text>')
        parts.append(f'<text x="{x + 10}" y="{y + 36}" font-size="10" fill="#5b6570">{escape(module)}</text>')
    return parts


def _draw_matrix(counts: Counter[tuple[str, str]]) -> list[str]:
    top, most = TOP + 118, max(counts.values())
    parts = []
    for index, name in enumerate(ORDER):
        y, x = top + index * CELL, LEFT + index * CELL
        parts.append(f'<text x="{LEFT - 8}" y="{y + 20}" text-anchor="end">{name}</text>')
        parts.append(f'<text transform="translate({x + 19},{top - 8}) rotate(-55)">{name}</text>')
        parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#d5dae0"/>')
        for column, other in enumerate(ORDER):
            if count := counts[name, other]:
                shade = 0.15 + 0.85 * count / most
                cell = f'x="{LEFT + column * CELL}" y="{y}" width="{CELL}" height="{CELL}"'
                parts.append(f'<rect {cell} fill="#0a6c74" fill-opacity="{shade:.2f}"/>')
                colour = "#ffffff" if shade > 0.55 else "#1a2027"
                middle = LEFT + column * CELL + CELL / 2
                parts.append(f'<text x="{middle:g}" y="{y + 20}" text-anchor="middle" fill="{colour}">{count}</text>')
    return parts


if __name__ == "__main__":
    FIGURE.write_text(draw())
