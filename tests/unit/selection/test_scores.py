"""Transferability scores: the published values on features that anyone can draw, and what no published code does right."""

import ast

import numpy as np
import pytest

from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.models.frozen_features import FrozenFeatures, check_scorable
from toolchain.selection import transfer_scores
from toolchain.selection.scores import hscore, leep, levels, logme, probe

# images, features, classes, features that are not zero -> LogME by github.com/thuml/LogME, commit 3a08950 (fixed point), and
# LEEP by its LEEP.py, commit 1dbc4d1, run on what `drawn` gives
PUBLISHED = {
    (0, 300, 20, 4, 20): (-0.2032736, -0.9900580),
    (1, 500, 64, 6, 64): (0.1636347, -0.8409844),
    (2, 200, 40, 3, 30): (-0.1655063, -0.5610379),
}
WIDE = (3, 50, 80, 4, 80)
WIDE_FIRST_VERSION = -0.0245557  # by the same file's `_fit_icml`; its fixed point gives 1.8231807


def drawn(seed: int, images: int, width: int, classes: int, used: int) -> FrozenFeatures:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, images - classes)])
    centres = random.standard_normal((classes, width))
    features = np.maximum(centres[labels] * 0.7 + random.standard_normal((images, width)), 0)
    features[:, used:] = 0
    source = np.exp(centres[labels] @ random.standard_normal((width, 9)) / 3 + random.standard_normal((images, 9)))
    return FrozenFeatures(features=features, labels=labels, source_probabilities=source / source.sum(1, keepdims=True))


@pytest.mark.parametrize("given", PUBLISHED)
def test_logme_and_leep_are_those_of_their_authors(given: tuple[int, ...]) -> None:
    seen = drawn(*given)
    evidence, likelihood = PUBLISHED[given]
    assert logme.score(seen, seen) == pytest.approx(evidence, abs=1e-5)
    assert leep.score(seen, seen) == pytest.approx(likelihood, abs=1e-6)


def test_logme_is_whole_where_features_outnumber_images() -> None:
    seen = drawn(*WIDE)
    assert logme.score(seen, seen) == pytest.approx(WIDE_FIRST_VERSION, abs=1e-4)


def test_logme_does_not_mind_features_that_are_always_zero() -> None:
    seen = drawn(0, 300, 20, 4, 20)
    padded = FrozenFeatures(features=np.pad(seen.features, ((0, 0), (0, 500))), labels=seen.labels)
    assert logme.score(padded, padded) == pytest.approx(logme.score(seen, seen), abs=1e-6)


def test_levels_count_alike_whatever_their_width_and_scale() -> None:
    seen = drawn(0, 300, 20, 4, 20)
    noise = np.random.default_rng(9).standard_normal((300, 200))

    def told(*found: np.ndarray) -> float:
        return levels.score(FrozenFeatures(features=found[-1], labels=seen.labels, block_features=found), seen)

    alone = told(seen.features)
    assert told(seen.features, 1e3 * seen.features) == pytest.approx(alone, abs=0.02)
    assert told(noise) < told(noise, seen.features) < alone  # the last level is not all that counts, nor is the widest
    assert told(seen.features, noise) > told(noise)
    assert told(seen.features, np.tile(noise, 5)) == pytest.approx(told(seen.features, noise), abs=1e-6)
    assert levels.score(seen, seen) == alone  # a network that is no chain has one level


def test_hscore_without_noise_is_the_plain_one() -> None:
    seen = drawn(1, 40_000, 8, 5, 8)
    within = np.cov(seen.features, rowvar=False)
    means = np.stack([seen.features[seen.labels == label].mean(0) for label in seen.labels])
    plain = np.trace(np.linalg.solve(within, np.cov(means, rowvar=False)))
    assert hscore.score(seen, seen) == pytest.approx(plain, rel=0.01)


def test_hscore_does_not_grow_with_features_of_noise() -> None:
    seen = drawn(0, 100, 20, 4, 20)
    noise = np.random.default_rng(1).standard_normal((100, 200))
    padded = FrozenFeatures(features=np.hstack([seen.features, noise]), labels=seen.labels)
    assert hscore.score(padded, padded) < 1.3 * hscore.score(seen, seen)


@pytest.mark.parametrize("name", registry.list_modules("scores"))
def test_every_score_prefers_features_that_tell_the_classes_apart(name: str) -> None:
    room = registry.load_module("scores", name)
    good, shuffled = drawn(0, 300, 20, 4, 20), drawn(0, 300, 20, 4, 20)
    mixed = np.random.default_rng(0).permutation(300)
    bad = FrozenFeatures(
        features=shuffled.features[mixed],
        labels=shuffled.labels,
        source_probabilities=shuffled.source_probabilities[mixed],
    )  # type: ignore[index]
    assert set(room.NEEDS) <= {"source"}
    assert room.score(good, good) > room.score(bad, bad)


def test_the_probe_is_asked_on_validation() -> None:
    known, other = drawn(0, 300, 20, 4, 20), drawn(0, 300, 20, 4, 20)
    wrong = FrozenFeatures(features=other.features, labels=(other.labels + 1) % 4)
    assert probe.score(known, wrong) < 0.3 < 0.9 < probe.score(known, other)


@pytest.mark.parametrize(
    ("labels", "features", "said"),
    [
        ([0, 0, 0], np.ones((3, 2)), "of one class"),
        ([0, 0, 1], np.ones((3, 2)), "class number 1 has 1 training images"),
        ([0, 0, 1, 1], np.full((4, 2), np.nan), "not finite"),
    ],
)
def test_what_no_score_can_tell_is_said(labels: list[int], features: np.ndarray, said: str) -> None:
    with pytest.raises(ToolchainError, match=said):
        check_scorable(FrozenFeatures(features=features, labels=np.array(labels)))


def test_what_scores_call_decides_whether_they_are_computed_anew() -> None:
    called = set[str]()
    for path in (registry.PACKAGE_FOLDER / "selection" / "scores").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("toolchain."):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                called |= {name for name in names if not name.startswith("toolchain.models.")}
    assert called == {f"toolchain.{name.replace('/', '.')}" for name in transfer_scores.SHARED_MODULES}
