"""The latency model: rates that made the latencies are found again, also from noisy ones, and none is negative."""

import numpy as np
import pytest

from toolchain.models.profile import Layer, LayerKind
from toolchain.search import latency_model
from toolchain.search.latency_model import TimedArchitecture

RATES = {"depthwise": 4e-9, "pointwise": 1e-9, "spatial": 0.7e-9, "linear": 2e-9, "grouped": 3e-9}


def layer(kind: LayerKind, inputs: int, outputs: int, sites: int) -> Layer:
    taps = {"depthwise": 9 / inputs, "spatial": 9.0}.get(kind, 1.0)
    weights = round(inputs * outputs * taps)
    return Layer(
        name="", kind=kind, inputs=inputs, outputs=outputs, sites=sites, macs=weights * sites, parameters=weights
    )


def network(dice: np.random.Generator) -> tuple[Layer, ...]:
    widths = [int(width) for width in dice.integers(1, 9, 5) * 16]
    return (
        layer("spatial", 3, widths[0], 784),
        *(layer("pointwise", widths[i], widths[i + 1], 196) for i in range(4)),
        *(layer("depthwise", widths[i + 1], widths[i + 1], 196) for i in range(4)),
        layer("linear", widths[4], 10, 1),
    )


def true(layers: tuple[Layer, ...]) -> float:
    moved = sum(one.sites * (one.inputs + one.outputs) for one in layers)
    return 1e-4 + 2e-10 * moved + sum(RATES[one.kind] * one.macs for one in layers)


@pytest.mark.parametrize(("noise", "allowed"), [(0.0, 0.01), (0.02, 0.05)])
def test_latencies_of_unseen_networks_are_predicted(noise: float, allowed: float) -> None:
    dice = np.random.default_rng(0)
    seen = [network(dice) for _ in range(20)]
    model = latency_model.fit(
        [TimedArchitecture(one, true(one) * (1 + noise * dice.standard_normal())) for one in seen]
    )
    unseen = [network(dice) for _ in range(50)]
    errors = [abs(model(one) / true(one) - 1) for one in unseen]
    assert max(errors) < 2 * allowed
    assert np.mean(errors) < allowed
    assert (model.rates >= 0).all()
    assert model.relative_error <= max(1.5 * noise, 1e-6)


def test_less_work_is_never_slower() -> None:
    dice = np.random.default_rng(1)
    model = latency_model.fit(
        [TimedArchitecture(network(dice), float(dice.uniform(1, 2))) for _ in range(8)]
    )  # nothing to learn
    wide, narrow = layer("pointwise", 64, 64, 196), layer("pointwise", 64, 48, 196)
    assert model([narrow]) <= model([wide])
