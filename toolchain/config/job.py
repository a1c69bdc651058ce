"""One run of the pipeline: what the user asked for and where results go, handed to every step."""

from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Budget, Recipe
from toolchain.config.target import Target


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe for a target on a dataset. Made once; a step that settles an open choice returns a changed copy."""

    recipe: Recipe
    target: Target
    domain: Domain  # the dataset: where its images lie, their classes and splits
    budget: Budget  # the recipe's, and the target's where the recipe names none
    out: Path  # folder of all runs
    lock_file: Path | None = None  # named by the user
    recipe_folder: Path | None = None  # where a lock may lie beside the recipe

    @property
    def folder(self) -> Path:
        """Return where this run's bundle and report go."""
        return self.out / self.recipe.name / self.target.name

    @property
    def work(self) -> Path:
        """Return the stage cache, which all recipes and targets share."""
        return self.out / "work"

    @property
    def images(self) -> Path:
        """Return the cache of decoded images."""
        return self.out / "data"


def make_job(
    recipe: Recipe,
    target: Target,
    domain: Domain,
    out: Path,
    *,
    lock_file: Path | None = None,
    recipe_folder: Path | None = None,
) -> Job:
    """Return the job of a recipe, a target and a dataset, with the budgets of both merged."""
    return Job(
        recipe=recipe, target=target, domain=domain, budget=merge_budgets(recipe.budget, target.budget), out=out,
        lock_file=lock_file, recipe_folder=recipe_folder,
    )  # fmt: skip


def merge_budgets(recipe: Budget, target: Budget) -> Budget:
    """Return the recipe's budget over the target's, key by key."""
    chosen = {key: mine if (mine := getattr(recipe, key)) is not None else getattr(target, key) for key in vars(recipe)}
    return Budget(**chosen)
