"""The job of one pipeline run: recipe, target, dataset, budget and folders, passed to every step."""

from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Budget, Recipe
from toolchain.config.target import Target


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe for a target on a dataset. Made once; a step that decides an open choice returns a changed copy."""

    recipe: Recipe
    target: Target
    domain: Domain  # the dataset: where its images are, their classes and splits
    budget: Budget  # the recipe's limits; the target's for those that the recipe leaves open
    out: Path  # folder of all runs
    lock_file: Path | None = None  # given by the user
    recipe_folder: Path | None = None  # searched for a lock beside the recipe

    @property
    def folder(self) -> Path:
        """Return the folder of this run's bundle and report."""
        return self.out / self.recipe.name / self.target.name

    @property
    def work(self) -> Path:
        """Return the folder of the stage cache, which all recipes and targets share."""
        return self.out / "work"

    @property
    def images(self) -> Path:
        """Return the folder with the cache of decoded images."""
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
    """Return a budget with the recipe's limits, and the target's where the recipe has none."""
    limits = {
        name: limit if (limit := getattr(recipe, name)) is not None else getattr(target, name) for name in vars(recipe)
    }
    return Budget(**limits)
