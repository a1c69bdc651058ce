"""`toolchain gate`: compare a candidate with the accepted baseline, for CI."""

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
        typer.Option("--recipe", "-r", help="Recipe whose bundle is the candidate; repeat it for several recipes."),
    ] = None,
    candidate: Annotated[
        Path | None, typer.Option(help="Candidate: a bundle's folder or archive. Default: the recipe's last run.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Baseline: a bundle's folder or archive. Default: the accepted baseline.")
    ] = None,
    reference_python: Annotated[
        Path | None,
        typer.Option(
            help="Virtual environment to run the baseline in, to compare one model under two versions of the runtime."
        ),
    ] = None,
    device: Board = "",
    data: Annotated[
        str,
        typer.Option(
            help="Test images: a folder, a CSV or what else --data of export takes. Default: the one that the baseline was accepted with."
        ),
    ] = "",
    waive: Annotated[
        list[str] | None,
        typer.Option(help="Check that need not be measured, such as accuracy; repeat it. The output says so."),
    ] = None,
    attempts: Annotated[
        int, typer.Option(help="How many times to measure latency while the result is undecided.", min=1, max=9)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the order in which models are timed.", min=0)] = 0,
    out: Annotated[
        Path, typer.Option("--out", help="Folder with the results of the runs; the gate writes to gate/ in it.")
    ] = Path("out"),
) -> None:
    """Compare a candidate with the accepted baseline, side by side: latency, accuracy, size, memory, int8 coverage.

    Exit status: 0 pass, 1 regression, 2 wrong input or a check was not measured, 3 cannot tell (noisy machine, few images).
    """
    from toolchain.config import overrides, read_config
    from toolchain.data import dataset_format

    dataset_format.check_data_flag(data, out / "data")  # before the imports below, which take seconds
    from toolchain.gates import gate_inputs, regression_gate
    from toolchain.measure import history
    from toolchain.report import terminal
    from toolchain.report.pages import gate as gate_report

    deployment, recipes = read_config.read_target(target), recipe or [overrides.choose_recipe("", data)]
    device = device or deployment.device
    if len(recipes) > 1 and (candidate or reference):
        raise ToolchainError(
            f"--candidate and --reference name one bundle, but {len(recipes)} recipes are given; give one --recipe"
        )
    if device and reference_python:
        raise ToolchainError(
            f"--reference-python {reference_python} runs on this machine, but latency is measured on {device}; give one of "
            "--reference-python and --device"
        )
    if unknown := sorted(set(waive or []) - set(regression_gate.WAIVABLE)):
        raise ToolchainError(f"--waive {unknown[0]!r}: accepted are {', '.join(regression_gate.WAIVABLE)}")
    waived = [regression_gate.WAIVABLE[name] for name in waive or []]
    folder = out / "gate" / deployment.name
    gate_report.remove_files(folder)
    regression_gate.check_environment(deployment, device)
    python = gate_inputs.find_interpreter(reference_python) if reference_python else ""
    pairs = []
    for name in recipes:  # all inputs are checked before anything is timed
        settings, domain = overrides.read_recipe(name, overrides.Flags(data=data))
        pair = gate_inputs.load_pair(
            settings, deployment, out, candidate=candidate, reference=reference, python=python, device=device
        )
        dataset = gate_inputs.read_data_source(settings, deployment, out, reference)
        pairs.append((pair, gate_inputs.find_images(domain, dataset, out / "data", pair)))
    results = regression_gate.adjust_for_several_recipes(
        [
            regression_gate.compare_pair(pair, deployment, images, seed, attempts=attempts, waive=waived)
            for pair, images in pairs
        ]
    )
    written = gate_report.build_result(results, deployment)
    gate_report.write(written, folder)
    history.append(out / history.FILE_NAME, history.from_gate(written, deployment.runtime))
    terminal.print_tables([gate_report.tabulate_checks(written), gate_report.tabulate_latencies(written)])
    for row in written["gates"]:
        for verdict in row["verdicts"]:
            if verdict["outcome"] != "pass":
                typer.echo(f"{row['recipe']}: {verdict['check']}: {verdict['why']}")
    typer.echo(gate_report.describe_outcome(written))
    typer.echo(f"figures: {folder / 'gate.json'}, gate.md, gate.xml (JUnit), gate.codequality.json (GitLab)")
    _write_github_output(gate_report.render_annotations(written), folder / "gate.md")
    if written["exit_status"]:
        raise typer.Exit(written["exit_status"])


def _write_github_output(annotations: list[str], markdown: Path) -> None:
    """On GitHub Actions, print the annotations and add the Markdown report to the job summary."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations:
            typer.echo(line)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a") as file:
                file.write(markdown.read_text())
        except OSError as reason:
            typer.echo(f"Warning: cannot add to the job summary at {summary}: {reason.strerror}", err=True)
