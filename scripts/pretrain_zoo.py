"""Trains the small source models that ship in this folder: `make pretrain`.

A zoo model is the dense model that `adapt` gives for a recipe named pretrain-<source>; beside its weights stands a
card with everything needed to make it again.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from toolchain.config import read_config
from toolchain.config.job import make_job
from toolchain.core import files, registry
from toolchain.data import prepare
from toolchain.training import finetune, loop
from toolchain.training import trained_model as trained_module

ZOO = registry.PACKAGE_FOLDER / "models" / "zoo"
COMMAND = "make pretrain"
LARGEST_BYTES = 4_000_000


def main(out: Annotated[Path, typer.Option(help="Folder for the cache.")] = Path("out")) -> None:
    """Trains squeezenet1_1_glyphs and writes it with its card."""
    pretrain("pretrain-glyphs", "squeezenet1_1_glyphs", out)


def pretrain(recipe_name: str, name: str, out: Path) -> dict[str, Any]:
    """Trains one zoo model; returns its card."""
    recipe = read_config.read_recipe(recipe_name)
    domain = read_config.read_domain(recipe.domain)
    data, _ = prepare.run(make_job(recipe, read_config.read_target("cpu"), domain, out))
    trained = finetune.run(make_job(recipe, read_config.read_target("cpu"), domain, out), data).trained
    path = ZOO / f"{name}.safetensors"
    trained_module.save_weights(trained.model, path)
    if path.stat().st_size > LARGEST_BYTES:
        path.unlink()
        raise SystemExit(f"{path.name} would be larger than {LARGEST_BYTES} bytes, too much to ship")
    found = loop.evaluate(trained.model, data.splits["test"], data.preprocess).accuracy
    card = {
        "name": name, "command": COMMAND, "recipe": recipe_name, "seed": recipe.seed, "model": recipe.model,
        "domain": recipe.domain, "data_digest": data.digest, "licence_of_images": domain.licence,
        "classes": data.classes, "images": {split: len(part) for split, part in data.splits.items()},
        "test_accuracy": round(found, 4), "validation_accuracy": round(trained.figures["best_accuracy"], 4),
        "sha256": files.sha256_file(path), "size_bytes": path.stat().st_size,
    }  # fmt: skip
    files.write_json(ZOO / f"{name}.json", card)
    typer.echo(f"{path.name}: test accuracy {found:.4f} over {len(data.classes)} classes, sha256 {card['sha256']}")
    return card


if __name__ == "__main__":
    typer.run(main)
