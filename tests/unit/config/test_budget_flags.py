"""`--budget KEY=VALUE`: numbers, texts and yes or no; what is none of them is one message."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from toolchain.config import overrides
from toolchain.config.overrides import Flags
from toolchain.config.recipe import Budget
from toolchain.core.errors import ToolchainError

BARE = """name = "bare"
domain = "digits"
[model]
name = "squeezenet1_1"
weights = "zoo:squeezenet1_1_glyphs"
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe without a budget."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "bare.toml").write_text(BARE)
    return str(tmp_path / "bare.toml")


def budget_of(recipe: str, *settings: str, **flags: Any) -> Budget:
    return overrides.read_recipe(recipe, Flags(budget=settings, **flags))[0].budget


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("accuracy_drop=0.02", "accuracy_drop", 0.02), ("balanced_drop=0", "balanced_drop", 0.0), ("speedup=2", "speedup", 2.0),
        ("size_bytes=150000", "size_bytes", 150_000), ("size=0.5x", "size", "0.5x"), ("size=12kB", "size", "12kB"),
        ("size=1.2 MB", "size", "1.2 MB"), ('size="1.2 MB"', "size", "1.2 MB"), ("latency=0.5x", "latency", "0.5x"),
        ("latency=1.2 ms", "latency", "1.2 ms"), ("macs=150M", "macs", "150M"), ("parameters=0.3x", "parameters", "0.3x"),
        ("dense_float=true", "dense_float", True), ("dense_float=false", "dense_float", False),
    ],
)  # fmt: skip
def test_a_value_has_the_type_of_its_key(setting: str, key: str, value: Any, recipe: str) -> None:
    budget = budget_of(recipe, setting)
    assert budget == Budget(**{key: value})
    assert type(getattr(budget, key)) is type(value)


def test_several_are_applied_in_order_and_win_over_the_recipe(recipe: str) -> None:
    Path(recipe).write_text(BARE + "[budget]\naccuracy_drop = 0.01\nspeedup = 1.5\n")
    assert budget_of(recipe) == Budget(accuracy_drop=0.01, speedup=1.5)
    budget = budget_of(recipe, "accuracy_drop=0.03", "size=0.5x", "accuracy_drop=0.02")
    assert budget == Budget(accuracy_drop=0.02, speedup=1.5, size="0.5x")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "accuracy_drop",
            r"--budget 'accuracy_drop': give KEY=VALUE, with one of accuracy_drop, balanced_drop, speedup",
        ),
        (
            "accuracy=0.02",
            r"--budget 'accuracy=0\.02': give KEY=VALUE, with one of accuracy_drop, balanced_drop, speedup",
        ),
        ("=0.02", r"--budget '=0\.02': give KEY=VALUE"),
        ("", r"--budget '': give KEY=VALUE"),
        ("accuracy_drop=", r"budget\.accuracy_drop"),
        ("accuracy_drop=2 pt", r"budget\.accuracy_drop"),
        ("accuracy_drop=-1", r"budget\.accuracy_drop"),
        ("accuracy_drop=nan", r"budget\.accuracy_drop"),
        ("accuracy_drop=2026-01-01", r"budget\.accuracy_drop"),
        ("accuracy_drop=[0.02]", r"budget\.accuracy_drop"),
        ("speedup=2x", r"budget\.speedup"),
        ("speedup=nan", r"budget\.speedup"),
        ("size_bytes=1.5", r"budget\.size_bytes"),
        ("size=12", r"budget\.size"),
        ("size=small", r"budget\.size"),
        ("latency=0.5", r"budget\.latency"),
        ("dense_float=yes please", r"budget\.dense_float"),
    ],
)
def test_what_is_no_budget_is_refused_by_name(setting: str, message: str, recipe: str) -> None:
    with pytest.raises(ToolchainError, match=message) as refused:
        budget_of(recipe, setting)
    assert refused.value.exit_code == 2
