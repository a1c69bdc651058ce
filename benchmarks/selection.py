"""Does `select` rank well? Scores before training against what fine-tuning reaches, for every candidate.

    python benchmarks/selection.py --recipe solar --data <folder> --candidates own.toml [--epochs 6] [--out out/selection]

Every candidate is scored as `toolchain select` does it, then fine-tuned with the recipe's settings for so many epochs; accuracy
is on validation, one seed. Kendall's tau of each score is over the candidates that come with weights, and over all; "lost" is
what the one that the score puts first (of those with weights) is below the best after training, in points. Trainings are kept in
--out/work, so a killed run goes on where it was.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy import stats as scipy_stats

from toolchain.config import overrides, read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import Recipe
from toolchain.config.shortlist import Candidate
from toolchain.core import progress, registry, statistics
from toolchain.data import prepare
from toolchain.selection import candidates as nominated
from toolchain.selection import extract_features, transfer_scores
from toolchain.training import finetune, loop


def main(
    data: Annotated[str, typer.Option()],
    candidates: Annotated[str, typer.Option(help="as of `toolchain select`, with commas")],
    recipe: str = "solar",
    epochs: Annotated[int, typer.Option(help="of fine-tuning each")] = 6,
    out: Path = Path("out/selection"),
) -> None:
    """Prints a row a candidate and a row a score."""
    torch.set_flush_denormal(True)
    chosen, domain = overrides.read_recipe(recipe, overrides.Flags(data=data, epochs=epochs, seeds=1))
    found = nominated.resolve(candidates.split(","))
    scored = [scores(one, chosen, domain, out) for one in found]
    reached = [accuracy(one, chosen, domain, out) for one in found]
    names = [name for name in registry.list_modules("scores") if any(name in row for row in scored)]
    print(f"| candidate | {' | '.join(names)} | fine-tuned, validation |\n|---|{'--:|' * (len(names) + 1)}")
    for row in sorted(range(len(found)), key=lambda number: -reached[number].mean()):
        bound = statistics.accuracy(reached[row])
        cells = [f"{scored[row][name]:.3g}" if name in scored[row] else "" for name in names]
        print(
            f"| {found[row].name} | {' | '.join(cells)} | {100 * bound.estimate:.1f} % [{100 * bound.low:.1f}, {100 * bound.high:.1f}] |"
        )
    print(
        f"\n{len(reached[0])} validation images.\n\n| score | tau, with weights | tau, all | n | lost |\n|---|--:|--:|--:|--:|"
    )
    for name in names:
        print(f"| {name} {quality(name, found, scored, reached)}")


def scores(one: Candidate, recipe: Recipe, domain: Domain, out: Path) -> dict[str, float]:
    """What `select` says of it."""
    data, _ = prepare.run(
        make_job(dataclasses.replace(recipe, model=one.model), read_config.read_target("cpu"), domain, out)
    )
    seen = extract_features.extract(one.name, one.model, data, out / "work")
    return dict(transfer_scores.compute(seen, out / "work", one.reuse.keep or extract_features.HEAD_INPUT))


def accuracy(one: Candidate, recipe: Recipe, domain: Domain, out: Path) -> np.ndarray:
    """Which validation images it gets right after fine-tuning, float [images]."""
    asked = dataclasses.replace(recipe, model=one.model, reuse=one.reuse)
    data, _ = prepare.run(make_job(asked, read_config.read_target("cpu"), domain, out))
    trained = finetune.run(make_job(asked, read_config.read_target("cpu"), domain, out), data).trained
    held = data.splits["val"]
    answer = loop.predict(trained.model, held, data.preprocess).argmax(1)
    right: np.ndarray = (answer == held.labels).numpy().astype(float)
    progress.log(f"{one.name}: {right.mean():.4f}")
    return right


def quality(name: str, found: list[Candidate], scored: list[dict[str, float]], reached: list[np.ndarray]) -> str:
    """The cells of a score's row."""
    known = [number for number in range(len(found)) if name in scored[number]]
    trained = [number for number in known if found[number].model.weights]
    means = [row.mean() for row in reached]

    def tau(numbers: list[int]) -> str:
        if len(numbers) < 3:
            return "–"
        return (
            f"{scipy_stats.kendalltau([scored[n][name] for n in numbers], [means[n] for n in numbers]).statistic:.2f}"
        )

    first = max(trained, key=lambda number: scored[number][name])
    best = max(means[number] for number in range(len(found)) if found[number].model.weights)
    return f"| {tau(trained)} | {tau(known)} | {len(trained)}, {len(known)} | {100 * (best - means[first]):.1f} |"


if __name__ == "__main__":
    typer.run(main)
