"""Which recipe a command without --recipe takes, and the rate of quantization-aware training where a recipe names none."""

from pathlib import Path

import pytest

from toolchain.config import overrides, read_config


@pytest.mark.parametrize(
    ("recipe", "data", "chosen"),
    [("", "", "digits"), ("", "photos", "image-folder"), ("solar", "photos", "solar"), ("solar", "", "solar")],
)
def test_the_recipe_fits_the_data(recipe: str, data: str, chosen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert overrides.choose_recipe(recipe, data) == chosen
    said = capsys.readouterr().out
    assert ("image-folder" in said) == (not recipe and bool(data))


def test_quantization_aware_training_fine_tunes_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    text = 'schema = 1\ndomain = "digits"\n[model]\nname = "resnet18"\n[prune]\nratio = 0.4\n[quantize.train]\nepochs = 4\n'
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert read_config.read_recipe(str(path)).quantize.train.learning_rate == 2e-4
    assert read_config.read_recipe(str(path)).adapt.learning_rate == 2e-3
    path.write_text(text + "learning_rate = 1e-3\n")
    assert read_config.read_recipe(str(path)).quantize.train.learning_rate == 1e-3
    assert read_config.read_recipe("digits").quantize.train.learning_rate == 1e-4
