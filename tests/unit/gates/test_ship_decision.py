"""What ships: the fastest that keeps every promise; never one that breaks one."""

import dataclasses
import math
from pathlib import Path

import pytest

from toolchain.config.job import merge_budgets
from toolchain.config.recipe import Budget
from toolchain.core import statistics
from toolchain.core.types import Artefact, IntegerCoverage, Interval
from toolchain.export.export_variants import Variant
from toolchain.gates import budget_checks, ship_decision
from toolchain.measure.accuracy import VariantAccuracy
from toolchain.measure.latency import LatencyMeasurement
from toolchain.measure.torch_parity import LogitDifference, Parity
from toolchain.search.latency_search import LatencyFit


def interval(estimate: float, reach: float = 0.001) -> Interval:
    return Interval(estimate=estimate, low=estimate - reach, high=estimate + reach, samples=1000)


def variant(name: str, *, size: int = 100) -> Variant:
    family, precision = name.split("-")
    return Variant(
        name=name, network=family, precision={"fp32": "f32"}.get(precision, precision), method="", macs=1, parameters=1,
        artefact=Artefact(path=Path("m"), files=(Path("m"),), sha256="", size_bytes=size), onnx_path=Path("m"),
        planned_layers=("a", "b"), image_size=(8, 8), output_step=None,
    )  # type: ignore[arg-type]  # fmt: skip


def accuracy(
    drop: float,
    *,
    unexplained: int = 0,
    rms: float = 0.5,
    integer: int = 2,
    images: int = 1000,
    differ: float = 0.01,
    reach: float = 0.004,
) -> VariantAccuracy:
    parity = Parity(
        top1_agreement=1.0, max_steps=1, step=1, images=images, accuracy_gap=0.0, gap=interval(0.0, 0.0),
        artefact=LogitDifference(rms_steps=interval(rms, 0.01), changed_images=unexplained, unexplained_images=unexplained),
    )  # fmt: skip
    cover = IntegerCoverage(integer=integer, planned=2, total=2, float_ops=("b",) if integer < 2 else ())
    return VariantAccuracy(
        accuracy=interval(0.9 - drop), balanced=interval(0.9), drop=interval(drop, reach), balanced_drop=interval(drop),
        disagreement=differ,
        parity=parity, coverage=cover,
    )  # fmt: skip


def timed(logs: dict[str, float]) -> LatencyMeasurement:
    rounds = {name: [log - 0.01, log, log + 0.01, log, log] for name, log in logs.items()}
    return LatencyMeasurement(
        latencies_ms=(1.0,),
        p50_ms=interval(1.0),
        round_logs=rounds,
        load_ms=1,
        first_ms=1,
        peak_rss_bytes=1,
        peak_share=None,
    )


VARIANTS = [variant("dense-fp32"), variant("pruned-fp32"), variant("pruned-int8", size=30)]
FAST = {
    "dense-fp32": timed({}),
    "pruned-fp32": timed({"dense-fp32": 0.4, "pruned-int8": -0.2}),
    "pruned-int8": timed({"dense-fp32": 0.6, "pruned-fp32": 0.2}),
}


GOOD = {"dense-fp32": accuracy(0.0), "pruned-fp32": accuracy(0.002), "pruned-int8": accuracy(0.004)}


def decide(budget: Budget, **changed: VariantAccuracy) -> ship_decision.ShipDecision:
    found = GOOD | {name.replace("_", "-"): value for name, value in changed.items()}
    return ship_decision.decide(VARIANTS, found, found, FAST, budget)


def outcome(judged: ship_decision.ShipDecision, check: str) -> str:
    return next(verdict.outcome for verdict in judged.verdicts if verdict.check == check)


def test_the_fastest_that_passes_ships() -> None:
    assert decide(Budget(accuracy_drop=0.01)).shipped == "pruned-int8"


def test_float_ships_where_integers_cost_too_much_accuracy_and_it_is_said() -> None:
    judged = decide(Budget(accuracy_drop=0.01), pruned_int8=accuracy(0.03))
    assert judged.shipped == "pruned-fp32"
    assert judged.notes == ("pruned-int8 is faster than pruned-fp32 but misses accuracy_drop on validation",)


def test_a_lock_says_which_form_ships_though_another_is_faster_today() -> None:
    found = ship_decision.decide(VARIANTS, GOOD, GOOD, FAST, Budget(accuracy_drop=0.01), ships="f32")
    assert (found.shipped, found.notes[-1]) == ("pruned-fp32", "the lock names the precision that ships")
    bad = GOOD | {"pruned-fp32": accuracy(0.05)}
    assert ship_decision.decide(VARIANTS, bad, bad, FAST, Budget(accuracy_drop=0.01), ships="f32").shipped is None
    absent = ship_decision.decide(VARIANTS, GOOD, GOOD, FAST, Budget(accuracy_drop=0.01), ships="bf16")
    assert (absent.shipped, "the lock names the precision that ships" in absent.notes) == ("pruned-int8", False)


def test_nothing_ships_when_every_variant_misses_and_the_closest_is_named() -> None:
    judged = decide(Budget(accuracy_drop=0.001))
    assert judged.shipped is None
    assert judged.missed == ("accuracy_drop",)
    assert judged.notes[0] == "nothing ships: pruned-fp32 misses accuracy_drop on validation"


def test_the_choice_is_made_on_validation_and_judged_on_test() -> None:
    good = {"dense-fp32": accuracy(0.0), "pruned-fp32": accuracy(0.002), "pruned-int8": accuracy(0.004)}
    bad = {**good, "pruned-int8": accuracy(0.03)}
    chosen = ship_decision.decide(VARIANTS, good, bad, FAST, Budget(accuracy_drop=0.01))
    assert (chosen.shipped, chosen.candidate) == (None, "pruned-int8")  # not swapped for what does better on test
    assert ship_decision.decide(VARIANTS, bad, good, FAST, Budget(accuracy_drop=0.01)).shipped == "pruned-fp32"


def test_a_budget_that_the_test_split_cannot_decide_ships_and_is_not_counted_as_passing() -> None:
    judged = decide(Budget(accuracy_drop=0.005))
    assert judged.shipped == "pruned-int8"
    assert outcome(judged, "accuracy_drop") == "cannot_tell"
    verdict = next(v for v in judged.verdicts if v.check == "accuracy_drop")
    assert verdict.images_needed == statistics.images_needed(0.005, 0.01) > 1000
    assert f"about {verdict.images_needed:,} images would decide" in verdict.why  # one figure, wherever it is quoted
    assert "crosses the limit" in next(v.why for v in judged.verdicts if v.check == "accuracy_drop")
    over = GOOD | {"pruned-int8": accuracy(0.006)}  # on test, above the limit but not beyond chance
    unlucky = ship_decision.decide(VARIANTS, GOOD, over, FAST, Budget(accuracy_drop=0.005))
    assert (unlucky.shipped, outcome(unlucky, "accuracy_drop")) == ("pruned-int8", "cannot_tell")
    on_validation = ship_decision.decide(VARIANTS, over, GOOD, FAST, Budget(accuracy_drop=0.005))
    assert on_validation.shipped == "pruned-fp32"  # validation chooses by its estimate


@pytest.mark.parametrize(
    ("worse", "check"),
    [
        (accuracy(0.0, unexplained=40), "unexplained_changes"),
        (accuracy(0.0, rms=9.0), "logit_error"),
        (accuracy(0.0, integer=1), "integer_coverage"),
    ],
)
def test_a_broken_promise_keeps_a_variant_from_shipping(worse: VariantAccuracy, check: str) -> None:
    judged = decide(Budget(), pruned_int8=worse)
    assert judged.shipped == "pruned-fp32"
    assert check in judged.notes[0]


@pytest.mark.parametrize(("lost", "shipped"), [(2, "pruned-int8"), (3, "pruned-fp32")])
def test_a_drop_counts_in_whole_images_when_validation_chooses(lost: int, shipped: str) -> None:
    drop = Interval(estimate=lost / 60, low=-0.02, high=0.1, samples=60)  # 3 % of 60 images are 1.8
    quality = GOOD | {"pruned-int8": dataclasses.replace(accuracy(0.0), drop=drop)}
    assert ship_decision.decide(VARIANTS, quality, quality, FAST, Budget(accuracy_drop=0.03)).shipped == shipped


WITH_DENSE = [VARIANTS[0], variant("dense-int8", size=60), *VARIANTS[1:]]
FAST_DENSE = FAST | {"dense-int8": timed({"dense-fp32": 0.3})}


def test_the_dense_int8_model_ships_where_pruning_costs_too_much() -> None:
    quality = GOOD | {"dense-int8": accuracy(0.001)}
    kept = ship_decision.decide(WITH_DENSE, quality, quality, FAST_DENSE, Budget(accuracy_drop=0.01))
    assert kept.shipped == "pruned-int8"
    lost = quality | {"pruned-int8": accuracy(0.08), "pruned-fp32": accuracy(0.08)}
    judged = ship_decision.decide(WITH_DENSE, lost, lost, FAST_DENSE, Budget(accuracy_drop=0.01))
    assert judged.shipped == "dense-int8"
    assert "pruned-int8 is faster than dense-int8 but misses accuracy_drop on validation" in judged.notes


def test_the_dense_float_model_ships_only_where_the_budget_allows_it() -> None:
    lost = GOOD | {name: accuracy(0.08) for name in ("dense-int8", "pruned-int8", "pruned-fp32")}
    for allowed, shipped in ((None, None), (False, None), (True, "dense-fp32")):
        budget = Budget(accuracy_drop=0.01, dense_float=allowed)
        assert ship_decision.decide(WITH_DENSE, lost, lost, FAST_DENSE, budget).shipped == shipped
    dense_only = [v for v in WITH_DENSE if v.network == "dense"]
    fast = {"dense-fp32": FAST["dense-fp32"], "dense-int8": timed({"dense-fp32": -0.3})}
    plain = ship_decision.decide(dense_only, lost | GOOD, lost | GOOD, fast, Budget(accuracy_drop=0.01))
    assert plain.shipped == "dense-fp32"  # a recipe that does not prune may be left in float


def test_where_nothing_ships_the_nearest_budgets_come_with_their_flags() -> None:
    quality = GOOD | {"dense-int8": accuracy(0.012), "pruned-int8": accuracy(0.05), "pruned-fp32": accuracy(0.05)}
    judged = ship_decision.decide(WITH_DENSE, quality, quality, FAST_DENSE, Budget(accuracy_drop=0.01, speedup=1.3))
    assert (judged.shipped, judged.candidate) == (None, "dense-int8")
    assert [entry.variant for entry in judged.nearest] == ["dense-int8", "pruned-int8", "pruned-fp32"]
    assert judged.nearest[0].flags == ("--budget accuracy_drop=0.012",)
    assert judged.nearest[0].loosened == pytest.approx(1.2)
    fast_enough = ship_decision.decide(
        WITH_DENSE, quality, quality, FAST_DENSE, Budget(accuracy_drop=0.06, speedup=2.0)
    )
    assert fast_enough.nearest[0].variant == "pruned-int8"
    assert fast_enough.nearest[0].flags == ("--budget speedup=1.78",)


def test_a_way_out_that_keeps_the_accuracy_comes_first_and_all_misses_are_named() -> None:
    quality = GOOD | {"dense-int8": accuracy(0.001), "pruned-int8": accuracy(0.05), "pruned-fp32": accuracy(0.05)}
    judged = ship_decision.decide(WITH_DENSE, quality, quality, FAST_DENSE, Budget(accuracy_drop=0.01, speedup=50.0))
    assert (
        judged.candidate == judged.nearest[0].variant == "dense-int8"
    )  # pruned-int8 is faster, but loses accuracy too
    assert judged.missed == ("speedup",)
    pruned = [v for v in WITH_DENSE if v.name != "dense-int8"]
    both = ship_decision.decide(pruned, quality, GOOD, FAST, Budget(accuracy_drop=0.01, speedup=50.0))
    assert both.missed == ("speedup", "accuracy_drop")  # on test only the speed-up, on validation both


def test_a_broken_artefact_is_neither_the_best_nor_a_way_out() -> None:
    quality = GOOD | {
        "dense-int8": accuracy(0.0, rms=9.0),
        "pruned-int8": accuracy(0.05),
        "pruned-fp32": accuracy(0.06),
    }
    judged = ship_decision.decide(WITH_DENSE, quality, quality, FAST_DENSE, Budget(accuracy_drop=0.01))
    assert (judged.shipped, judged.candidate) == (None, "pruned-int8")
    assert {entry.variant for entry in judged.nearest} == {"pruned-int8", "pruned-fp32"}


def test_speed_and_size_budgets_are_held() -> None:
    assert decide(Budget(speedup=1.7)).shipped == "pruned-int8"
    assert decide(Budget(speedup=2.0)).shipped is None
    assert decide(Budget(size_bytes=50)).shipped == "pruned-int8"
    assert decide(Budget(size_bytes=20)).shipped is None


def test_a_target_that_cannot_be_timed_ships_its_smallest_and_says_what_was_not_measured() -> None:
    found = ship_decision.decide(VARIANTS, GOOD, GOOD, {}, Budget(accuracy_drop=0.01, speedup=9.0))
    assert found.shipped == "pruned-int8"
    assert {v.check for v in found.verdicts if v.outcome == "not_measured"} == {"speedup"}
    assert math.isnan(budget_checks.speedup_over({}, "pruned-int8", "dense-fp32").estimate)


def test_coverage_that_this_machine_cannot_show_is_not_a_pass() -> None:
    blind = {name: dataclasses.replace(own, coverage=None) for name, own in GOOD.items()}
    found = ship_decision.decide(VARIANTS, blind, blind, {}, Budget())
    assert [v.outcome for v in found.verdicts if v.check == "integer_coverage"] == ["not_measured"]
    assert found.shipped


def test_the_recipes_budget_wins_key_by_key() -> None:
    merged = merge_budgets(Budget(accuracy_drop=0.01), Budget(accuracy_drop=0.5, size_bytes=7))
    assert (merged.accuracy_drop, merged.size_bytes) == (0.01, 7)


def test_a_budget_finer_than_the_test_set_can_show_is_answered_with_the_images_it_needs() -> None:
    said = budget_checks.describe_power(0.005, 165, 0.05)
    assert "165 test images cannot show a drop of 0.5 points, only 4.9 or more" in said
    assert int(said.split()[-4].replace(",", "")) == pytest.approx(15_700, rel=0.01)
    assert budget_checks.describe_power(0.05, 165, 0.05) == ""
    found = decide(Budget(accuracy_drop=0.005), pruned_int8=accuracy(0.004, differ=0.05))
    assert "cannot show" in next(v.why for v in found.verdicts if v.check == "accuracy_drop")


FITTED = LatencyFit(
    limit=0.6, latency=0.58, predicted=0.58, error=0.01, timed=20, dense="f32", dense_ms=1.0, placement=None
)  # fmt: skip


@pytest.mark.parametrize(("limit", "shipped"), [(0.7, "pruned-int8"), (0.6, "pruned-int8"), (0.5, None)])
def test_a_latency_budget_is_held_against_the_dense_model_as_it_would_ship(limit: float, shipped: str | None) -> None:
    fitted = dataclasses.replace(FITTED, limit=limit)
    found = ship_decision.decide(VARIANTS, GOOD, GOOD, FAST, Budget(accuracy_drop=0.01), fitted)
    assert found.shipped == shipped
    verdict = next(one for one in found.verdicts if one.check == "latency")
    assert verdict.limit == limit
    assert "dense-fp32" in verdict.why
    if shipped:
        assert verdict.measured == pytest.approx(math.exp(-0.6), abs=0.01)
        assert verdict.outcome == "pass"


def test_a_latency_budget_on_another_machine_is_not_measured() -> None:
    found = ship_decision.decide(VARIANTS, GOOD, GOOD, {}, Budget(), FITTED)
    assert outcome(found, "latency") == "not_measured"


def test_a_latency_budget_of_a_form_that_cannot_run_here_is_not_measured() -> None:
    found = ship_decision.decide(
        VARIANTS, GOOD, GOOD, FAST, Budget(latency="0.6x"), dataclasses.replace(FITTED, dense="bf16")
    )
    verdict = next(one for one in found.verdicts if one.check == "latency")
    assert (verdict.outcome, verdict.limit) == ("not_measured", FITTED.limit)
    assert "the precision that the dense model would ship in" in verdict.why


@pytest.mark.parametrize(("dense", "limit", "outcome"), [("f32", 50.0, "pass"), ("int8", 20.0, "fail")])
def test_a_budget_of_bytes_is_a_share_of_the_form_that_was_planned_for(dense: str, limit: float, outcome: str) -> None:
    variants = [VARIANTS[0], variant("dense-int8", size=40), *VARIANTS[1:]]
    accuracies = GOOD | {"dense-int8": accuracy(0.5)}  # the best dense form here is the float one
    fast = FAST | {"dense-int8": timed({"dense-fp32": 0.1})}
    found = ship_decision.decide(variants, accuracies, accuracies, fast, Budget(size="0.5x"), None, dense)  # type: ignore[arg-type]
    verdict = next(one for one in found.verdicts if one.check == "size")
    assert (verdict.limit, verdict.outcome) == (limit, outcome)
