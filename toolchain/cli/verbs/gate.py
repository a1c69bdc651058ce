"""`toolchain gate`: the candidate against the accepted baseline, for CI."""

import os
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import Board, TargetName
from toolchain.core.errors import ToolchainError

PANEL = "Measure and gate"


def gate(
    target: TargetName = "cpu",
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", "-r", help="Recipe whose bundle is the candidate; may be given often."),
    ] = None,
    candidate: Annotated[
        Path | None, typer.Option(help="Bundle or archive instead of the last run's of that recipe.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Bundle or archive instead of the accepted reference.")] = None,
    reference_python: Annotated[
        Path | None,
        typer.Option(
            help="Virtual environment whose runtime runs the reference: the same artefact under two versions."
        ),
    ] = None,
    device: Board = "",
    data: Annotated[str, typer.Option(help="Folder of the test pictures, as for export.")] = "",
    attempts: Annotated[
        int, typer.Option(help="How often latency is tried where it cannot be told.", min=1, max=9)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the order in which rounds are timed.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs; results are written to gate/ in it.")] = Path(
        "out"
    ),
) -> None:
    """Compare the candidate with the accepted reference in this very job: latency, accuracy, size, memory, coverage.

    Exit status: 0 pass, 1 regression, 3 cannot tell (the machine is too noisy, the pictures too few), 2 wrong input.
    """
    from toolchain.config import overrides, toml_files
    from toolchain.gates import gate_inputs, regression_gate
    from toolchain.measure import history
    from toolchain.report import terminal
    from toolchain.report.pages import gate as gate_report

    chosen, recipes = toml_files.read_target(target), recipe or ["digits"]
    device = device or chosen.device
    if len(recipes) > 1 and (candidate or reference):
        raise ToolchainError("--candidate and --reference name one bundle; give one --recipe with them")
    if device and reference_python:
        raise ToolchainError("--reference-python is of this machine and --device is not; give one of them")
    folder = out / "gate" / chosen.name
    gate_report.remove_files(folder)
    regression_gate.check_environment(chosen, device)
    python = gate_inputs.find_interpreter(reference_python) if reference_python else ""
    tests = []
    for name in recipes:  # whatever is wrong shows before anything is timed
        job, domain = overrides.read_recipe(name, overrides.Flags(data=data))
        pair = gate_inputs.load_pair(
            job, chosen, out, candidate=candidate, reference=reference, python=python, device=device
        )
        shown = (
            gate_inputs.list_images(domain, out / "data", pair) if domain.path or domain.source != "folder" else None
        )
        tests.append((pair, shown))
    gated = regression_gate.adjust_for_several_recipes(
        [regression_gate.compare_pair(pair, chosen, shown, seed, attempts) for pair, shown in tests]
    )
    found = gate_report.build_result(gated, chosen)
    gate_report.write(found, folder)
    history.append(out / history.FILE_NAME, history.from_gate(found, chosen.runtime))
    terminal.print_tables([gate_report.tabulate_checks(found), gate_report.tabulate_latencies(found)])
    for row in found["gates"]:
        for verdict in row["verdicts"]:
            if verdict["outcome"] != "pass":
                typer.echo(f"{row['recipe']}: {verdict['check']}: {verdict['why']}")
    typer.echo(gate_report.describe_outcome(found))
    typer.echo(f"figures: {folder / 'gate.json'}, gate.md, gate.xml (JUnit), gate.codequality.json (GitLab)")
    _announce(gate_report.render_annotations(found), folder / "gate.md")
    if found["exit_status"]:
        raise typer.Exit(found["exit_status"])


def _announce(lines: list[str], summary: Path) -> None:
    """Annotations and summary where GitHub looks for them."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in lines:
            typer.echo(line)
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(page).open("a") as file:
                file.write(summary.read_text())
        except OSError as reason:
            typer.echo(f"Warning: cannot add to the job's summary at {page}: {reason.strerror}", err=True)
