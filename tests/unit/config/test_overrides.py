"""Which recipe a command without --recipe takes, and the rate of quantization-aware training where a recipe names none."""

from pathlib import Path

import pytest

from toolchain.config import overrides, read_config
from toolchain.core.errors import ToolchainError


@pytest.mark.parametrize(
    ("recipe", "data", "chosen"),
    [("", "", "digits"), ("", "photos", "image-folder"), ("solar", "photos", "solar"), ("solar", "", "solar")],
)
def test_the_recipe_fits_the_data(
    recipe: str,
    data: str,
    chosen: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
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


@pytest.mark.parametrize(
    ("setting", "ratio"), [("latency=0.5x", None), ("size=0.5x", None), ("accuracy_drop=0.02", 0.4)]
)
def test_a_budget_that_says_how_far_to_prune_replaces_the_ratio(setting: str, ratio: float | None) -> None:
    recipe, _ = overrides.read_recipe("image-folder", overrides.Flags(budget=(setting,)))
    assert recipe.prune.ratio == ratio


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("accuracy_drop=5", "must be a share below 1; 0.05 is five points"),
        ("accuracy_drop=inf", "must be a share below 1"),
        ("speedup=inf", "must be a finite number"),
        ("latency=5", "budget.latency"),
    ],
)
def test_a_budget_that_nobody_means_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ToolchainError, match=message):
        overrides.read_recipe("digits", overrides.Flags(budget=(setting,)))
