"""Choosing a model before training: candidates by name, rankings and fronts, what fails alone, and what `auto` takes."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, draw, job_of

from toolchain.cli.main import main
from toolchain.config import read_config
from toolchain.config.dataset import Domain
from toolchain.config.recipe import Budget, ModelSpec, Recipe, ReuseSpec
from toolchain.config.shortlist import Candidate
from toolchain.config.target import Target
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval, Preprocessing
from toolchain.data import decoded_dataset
from toolchain.measure import untrained_latency
from toolchain.measure.untrained_latency import UntrainedLatency, UntrainedNetwork
from toolchain.models import build, weights
from toolchain.models.sources import torchvision_hub
from toolchain.report import assemble, html_report, markdown
from toolchain.report.pages import select
from toolchain.report.sections import model_candidates
from toolchain.selection import candidates, extract_features, ranking, select_model, transfer_scores

GLYPHS = ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet1_1_glyphs", mean=(0.5,) * 3, std=(0.5,) * 3)
SHOWN = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)
CPU = read_config.read_target("cpu")


def milliseconds(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value, samples=3)


def pretend(taken: Mapping[str, float], refused: Mapping[str, str] | None = None, *, timed: bool = True) -> Any:
    """Stands for the clock: as long as it is told, nothing for what the target does not run or on another machine."""

    def run(
        networks: Mapping[str, UntrainedNetwork], target: Target, work: Path
    ) -> tuple[dict[str, UntrainedLatency], dict[str, str]]:
        found = {
            name: UntrainedLatency(
                macs=1, parameters=1,
                latencies={"f32": milliseconds(2 * taken.get(name, 1.0)), "int8": milliseconds(taken.get(name, 1.0))} if timed else {},
                sizes={"f32": 4, "int8": 1},
            )
            for name in networks if name not in (refused or {})
        }  # fmt: skip
        return found, dict(refused or {})

    return run


def small_candidates() -> list[Candidate]:
    return [
        Candidate(name="glyphs", model=GLYPHS, may_ship="yes", trained_on="glyphs"),
        Candidate(name="glyphs to 4", model=GLYPHS, reuse=ReuseSpec(keep="features.4"), may_ship="yes"),
        Candidate(name="random", model=dataclasses.replace(GLYPHS, weights=""), may_ship="yes"),
    ]


def test_candidates_are_named_in_many_ways(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(b"x")
    (tmp_path / "own.toml").write_text(
        'schema = 1\n[[candidates]]\nname = "mine"\nmay_ship = "no"\nreuse = {keep = "layer2.1"}\n'
        '[candidates.model]\nname = "resnet18"\nweights = "own.safetensors"\n'
    )
    found = candidates.resolve(
        [
            str(tmp_path / "own.toml"),
            "zoo:squeezenet1_1_glyphs",
            "random:resnet18",
            "resnet18:IMAGENET1K_V1",
            "recipe:digits",
        ]
    )
    assert [one.name for one in found] == ["mine", "squeezenet1_1_glyphs", "resnet18, random", "resnet18:IMAGENET1K_V1"]
    assert found[0].model.weights == str(tmp_path / "own.safetensors")  # beside the shortlist
    assert (found[0].reuse, found[0].may_ship) == (ReuseSpec(keep="layer2.1"), "no")
    assert (found[1].may_ship, found[1].model.mean) == ("yes", (0.5, 0.5, 0.5))
    assert (found[2].model.weights, found[2].may_ship) == ("", "yes")
    assert (found[3].model.weights, found[3].may_ship) == ("IMAGENET1K_V1", "unknown")


def test_without_weights_there_is_nothing_to_license_unless_the_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        "schema = 1\n"
        '[[candidates]]\nname = "bare"\n[candidates.model]\nname = "resnet18"\n'
        '[[candidates]]\nname = "patented"\nmay_ship = "no"\n[candidates.model]\nname = "resnet34"\n'
        '[[candidates]]\nname = "told"\n[candidates.model]\nname = "resnet50"\nlicence = "ask us"\n'
    )
    found = candidates.resolve([str(tmp_path / "own.toml"), "random:resnet18"])
    assert [(one.name, one.model.licence, one.may_ship) for one in found] == [
        ("bare", "none needed", "yes"),  # what random:resnet18 is as well
        ("patented", "", "no"),
        ("told", "ask us", "unknown"),
    ]


def test_the_shipped_shortlist_names_models_that_are_there() -> None:
    names = [one.model.name for one in candidates.resolve([candidates.DEFAULT_SHORTLIST])]
    assert len(names) == 12
    assert set(names) <= set(torchvision_hub.list_models())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet19", r"'resnet19' is not a shortlist \(small\), not a file and not a model.*did you mean 'resnet"),
        ("zoo:nothing", "zoo:squeezenet1_1_glyphs"),
        ("none.toml", "none.toml does not exist"),
        ("recipe:nothing", "there is no recipe 'nothing'"),
    ],
)
def test_a_candidate_that_is_none_is_said(name: str, said: str) -> None:
    with pytest.raises(ToolchainError, match=said):
        candidates.resolve([name])
    with pytest.raises(ToolchainError, match="no candidates are named; 'small' is the shortlist"):
        candidates.resolve([])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "candidates"),
        ("candidates = []", "give at least one"),
        ('[[candidates]]\nname = "a"\nlicense = "MIT"\n[candidates.model]\nname = "resnet18"\n', "license"),
        ('[[candidates]]\nname = "a"\nmay_ship = "perhaps"\n[candidates.model]\nname = "resnet18"\n', "may_ship"),
        ('[[candidates]]\nname = "a"\nmodel = {name = "resnet18"}\n' * 2, "two candidates have the name 'a'"),
    ],
)
def test_a_wrong_shortlist_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f"schema = 1\n{content}")
    with pytest.raises(ToolchainError, match=said):
        read_config.read_shortlist(str(tmp_path / "own.toml"))


def test_a_look_is_taken_once_and_serves_every_depth(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    found = extract_features.extract("glyphs", GLYPHS, data, tmp_path / "work")
    train, held = found.select("train"), found.select("val")
    assert (len(train.labels), len(held.labels)) == (len(data.splits["train"]), len(data.splits["val"]))
    assert train.features.shape[1] == 512
    assert train.source_probabilities is not None
    assert train.source_probabilities.shape[1] == 125
    torch.testing.assert_close(
        torch.from_numpy(train.source_probabilities.sum(1)), torch.ones(len(train.labels)).double()
    )
    assert found.blocks[:2] == ("features.0", "features.3")
    assert found.select("train", "features.4").source_probabilities is None  # its own head does not stand there
    assert found.loaded_weights["share"] == 1.0
    monkeypatch.setattr(extract_features, "_extract_splits", None)
    assert (
        extract_features.extract("glyphs", GLYPHS, data, tmp_path / "work").select("val").features.tolist()
        == held.features.tolist()
    )


def test_levels_are_those_up_to_the_cut_and_what_the_head_is_given_counts_once(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    found = extract_features.extract("glyphs", GLYPHS, data, tmp_path / "work")
    widths = [found.select("train", block).features.shape[1] for block in found.blocks]
    for number, block in enumerate(found.blocks):
        seen = found.select("train", block)
        assert [level.shape[1] for level in seen.block_features] == widths[: number + 1]
        assert seen.block_features[-1] is seen.features
    whole = found.select("train")
    assert [
        level.shape[1] for level in whole.block_features
    ] == widths  # nothing learns between the last block and the head
    hidden = extract_features.extract("v3", ModelSpec(name="mobilenet_v3_small"), data, tmp_path / "work")
    assert [level.shape[1] for level in hidden.select("train").block_features[-2:]] == [
        576,
        1024,
    ]  # its head has two layers


def test_what_a_cut_network_hands_to_its_head_is_what_was_seen(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    found = extract_features.extract("glyphs", GLYPHS, data, tmp_path / "work")
    model, head, _ = build.build_with_new_head(GLYPHS, 3, seed=0, reuse=ReuseSpec(keep="features.6"))
    given: list[torch.Tensor] = []
    model.eval().get_submodule(head).register_forward_pre_hook(lambda _, seen: given.append(seen[0].flatten(1)))
    pixels = data.splits["val"].pixels[:4].float() / 255
    with torch.inference_mode():
        model(((pixels - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(
        given[0].double(), torch.from_numpy(found.select("val", "features.6").features[:4]), rtol=1e-4, atol=1e-4
    )


def test_images_are_drawn_class_by_class() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2] * 2)
    rows = extract_features.sample_stratified(labels, 20)
    assert np.bincount(labels[rows]).tolist() == [15, 3, 2]  # two of each at least
    assert rows == sorted(set(rows))
    assert extract_features.sample_stratified(labels, 500) == list(range(101))


def test_scores_that_need_a_head_are_left_out_without_one(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    whole = extract_features.extract("glyphs", GLYPHS, data, tmp_path / "work")
    assert set(transfer_scores.compute(whole, tmp_path / "work")) == set(registry.list_modules("scores"))
    assert "leep" not in transfer_scores.compute(whole, tmp_path / "work", "features.4")
    bare = extract_features.extract("random", dataclasses.replace(GLYPHS, weights=""), data, tmp_path / "work")
    assert "leep" not in transfer_scores.compute(bare, tmp_path / "work")


def test_a_candidate_that_cannot_be_had_does_not_stop_the_others(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrained_latency, "time_networks", pretend({}, {"random": "cannot be exported"}))
    square = Candidate(name="square", model=ModelSpec(name="vit_b_16"), may_ship="yes")
    missing = Candidate(name="gone", model=ModelSpec(name="resnet18", weights="gone.safetensors"))
    nowhere = Candidate(name="nowhere", model=GLYPHS, reuse=ReuseSpec(keep="features.99"), may_ship="yes")
    found = select_model.rank_candidates(domain, CPU, [missing, nowhere, square, *small_candidates()], None, tmp_path)
    rows = {row["name"]: row for row in found["candidates"]}
    assert "gone.safetensors does not exist" in rows["gone"]["error"]
    assert rows["random"]["error"] == "cannot be exported"
    assert "no block 'features.99'; did you mean 'features.9'?" in rows["nowhere"]["error"]
    assert "vit_b_16 does not accept images of 32x32" in rows["square"]["error"]
    assert {row["rank"] for row in rows.values()} == {1, 2, None}
    assert rows["glyphs"]["weights"]["sha256"] == weights.weights_digest(GLYPHS)
    assert [row["rank"] for row in found["candidates"]] == [1, 2, None, None, None, None]
    assert not any("gone" in text for text in found["warnings"])  # what is not there need not ship
    with pytest.raises(ToolchainError, match="no candidate is left: gone"):
        select_model.rank_candidates(domain, CPU, [missing], None, tmp_path)


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "one", {"ant": 40})
    alone = Domain(name="one", path=str(folder), mode="gray", image_size=(32, 32), calibration_images=16)
    with pytest.raises(ToolchainError, match="class"):
        select_model.rank_candidates(alone, CPU, small_candidates(), None, tmp_path / "out")


def test_a_class_of_one_image_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "few"
    for split, counts in {"train": (9, 1), "val": (3, 3), "test": (3, 3)}.items():
        draw(folder / split, dict(zip(("ant", "bee"), counts, strict=True)), seed=len(split))
    few = Domain(name="few", path=str(folder), mode="gray", image_size=(32, 32), calibration_images=4)
    with pytest.raises(ToolchainError, match=r"2 training images each; too few have: bee \(1\)"):
        select_model.rank_candidates(few, CPU, small_candidates(), None, tmp_path / "out")


def rows(*given: tuple[str, float, float | None, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name, "model": {"weights": "" if "random" in name else "x"}, "scores": {select_model.RANKING_SCORE: value}, "bounds": {}, "error": "", "rank": None, "front": False, "may_ship": ships,
            "fastest": "int8" if taken else None,
            "latency_ms": {"int8": {"estimate": taken, "low": taken, "high": taken, "samples": 3}} if taken else {},
        }
        for name, value, taken, ships in given
    ]  # fmt: skip


def test_the_front_is_what_nothing_beats_in_both() -> None:
    found = rows(
        ("slow", 0.9, 5.0, "yes"),
        ("best", 0.95, 4.0, "yes"),
        ("fast", 0.7, 1.0, "yes"),
        ("worse", 0.6, 2.0, "yes"),
        ("closed", 0.99, 0.5, "no"),
    )
    ranking.assign_ranks(found, select_model.RANKING_SCORE)
    assert {row["name"] for row in found if row["front"]} == {"best", "fast"}
    assert [row["name"] for row in sorted(found, key=lambda row: row["rank"])] == [
        "closed",
        "best",
        "slow",
        "fast",
        "worse",
    ]


def test_of_two_with_one_score_the_pretrained_one_comes_first() -> None:
    found = rows(("random", 0.9, 1.0, "yes"), ("trained", 0.9, 1.0, "yes"))
    ranking.assign_ranks(found, select_model.RANKING_SCORE)
    assert [row["rank"] for row in found] == [2, 1]


def test_an_untrained_model_that_comes_first_is_said(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrained_latency, "time_networks", pretend({}))
    bare = small_candidates()[2]
    found = select_model.rank_candidates(domain, CPU, [bare], None, tmp_path)
    assert any(text.startswith("random comes first with random weights") for text in found["warnings"])
    found = select_model.rank_candidates(domain, CPU, [small_candidates()[0]], None, tmp_path)
    assert not any("random weights" in text for text in found["warnings"])


def test_the_first_of_the_front_that_the_budget_allows_is_taken() -> None:
    found = rows(("best", 0.95, 4.0, "yes"), ("fast", 0.7, 1.0, "yes"))
    ranking.assign_ranks(found, select_model.RANKING_SCORE)
    written = {"score": select_model.RANKING_SCORE, "candidates": found}
    assert ranking.pick_within_latency(written, None)[0]["name"] == "best"
    row, why = ranking.pick_within_latency(written, 2.0)
    assert row["name"] == "fast"
    assert "within 2 ms" in why
    with pytest.raises(ToolchainError, match=r"no candidate is within 0.5 ms before pruning: the fastest takes 1 ms"):
        ranking.pick_within_latency(written, 0.5)
    untimed = rows(("best", 0.95, None, "yes"))
    ranking.assign_ranks(untimed, select_model.RANKING_SCORE)
    written = {"score": select_model.RANKING_SCORE, "candidates": untimed}
    assert ranking.pick_within_latency(written, None)[0]["name"] == "best"
    with pytest.raises(ToolchainError, match="nothing was timed"):
        ranking.pick_within_latency(written, 1.0)


def test_what_may_not_be_shipped_is_never_chosen() -> None:
    found = rows(("closed", 0.99, 0.5, "no"), ("open", 0.7, 1.0, "yes"))
    ranking.assign_ranks(found, select_model.RANKING_SCORE)
    written = {"score": select_model.RANKING_SCORE, "candidates": found}
    row, why = ranking.pick_within_latency(written, None)
    assert (row["name"], why) == ("open", "the best levels score of those that may be shipped, 0.700")
    assert ranking.pick_best(written)[0]["name"] == "open"
    untimed = rows(("closed", 0.99, None, "no"), ("open", 0.7, None, "unknown"))
    ranking.assign_ranks(untimed, select_model.RANKING_SCORE)
    assert ranking.pick_within_latency({**written, "candidates": untimed}, None)[0]["name"] == "open"
    closed = {**written, "candidates": found[:1]}
    with pytest.raises(ToolchainError, match=r"no candidate may be shipped: closed\. Name further candidates"):
        ranking.pick_within_latency(closed, None)
    assert ranking.pick_best(closed)[1] == "the best levels score, 0.990; none may be shipped"


@pytest.mark.parametrize("timed", [True, False])
def test_where_nothing_may_ship_or_was_timed_there_is_a_page_all_the_same(
    timed: bool, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrained_latency, "time_networks", pretend({}, timed=timed))
    closed = [dataclasses.replace(one, may_ship="no") for one in small_candidates()[:2]]
    found = select_model.rank_candidates(domain, CPU, closed, None, tmp_path)
    select.write(found, tmp_path)
    assert "none may be shipped" in model_candidates.summarize(found)
    assert ("latency and size of untrained copies" in model_candidates.summarize(found)) == timed
    assert ("nothing was timed" in model_candidates.summarize(found)) != timed
    assert "they may not be shipped: glyphs, glyphs to 4" in found["warnings"]
    assert ("<svg" in (tmp_path / "tiny.cpu.html").read_text()) == timed
    assert {row[-2].endswith(" f32") for row in model_candidates.tabulate_ranking(found).rows} == {not timed}


def test_pictures_that_are_left_out_are_named(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(domain.path, tmp_path / "own")
    folder = next(path.parent for path in sorted((tmp_path / "own").rglob("*.png")))
    for number in range(7):
        (folder / f"cut{number}.png").write_bytes(b"no picture")
    monkeypatch.setattr(untrained_latency, "time_networks", pretend({}))
    some = dataclasses.replace(domain, path=str(tmp_path / "own"), on_corrupt="skip")
    said = next(
        text
        for text in select_model.rank_candidates(some, CPU, small_candidates()[:1], None, tmp_path)["warnings"]
        if "unreadable" in text
    )
    assert said.count("cut") == 5
    assert said.endswith(" and 2 more")


@pytest.mark.parametrize(("ships", "said"), [("yes", []), ("unknown", ["glyphs may be shipped (licence: not known)"])])
def test_the_report_warns_of_a_chosen_model_whose_licence_nobody_knows(ships: str, said: list[str]) -> None:
    found = [{**row, "licence": ""} for row in rows(("glyphs", 0.9, 1.0, ships), ("other", 0.8, 1.0, "unknown"))]
    ranked = {"candidates": found, "chosen": "glyphs"}
    warned = assemble.warn_of_licence(SimpleNamespace(ranking=ranked))  # type: ignore[arg-type]
    assert [text.partition("not known whether ")[2] for text in warned] == said
    assert assemble.warn_of_licence(SimpleNamespace(ranking=None)) == []  # type: ignore[arg-type]


def test_auto_takes_the_best_that_the_budget_allows(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "resolve", lambda names: small_candidates() if names == ["mine"] else [])
    monkeypatch.setattr(untrained_latency, "time_networks", pretend({"glyphs": 4.0, "glyphs to 4": 1.0, "random": 3.0}))
    recipe = Recipe(name="r", domain="tiny", model=ModelSpec(name="auto:mine"))
    job, ranked = select_model.resolve_auto_model(
        job_of(recipe, CPU, domain, out=tmp_path, budget=Budget(latency="2 ms"))
    )
    assert (job.recipe.model, job.recipe.reuse) == (GLYPHS, ReuseSpec(keep="features.4"))
    assert ranked is not None
    assert (ranked["chosen"], "within 2 ms" in ranked["why"]) == ("glyphs to 4", True)
    own = dataclasses.replace(recipe, reuse=ReuseSpec(keep="features.7"))
    job, _ = select_model.resolve_auto_model(job_of(own, CPU, domain, out=tmp_path, budget=Budget(latency="2 ms")))
    assert job.recipe.reuse == ReuseSpec(keep="features.7")
    named = dataclasses.replace(recipe, model=GLYPHS)
    job = job_of(named, CPU, domain, out=tmp_path)
    assert select_model.resolve_auto_model(job) == (job, None)
    nobody = dataclasses.replace(recipe, model=ModelSpec(name="auto:"))
    monkeypatch.undo()
    with pytest.raises(ToolchainError, match="no candidates are named"):
        select_model.resolve_auto_model(job_of(nobody, CPU, domain, out=tmp_path, budget=Budget()))


def test_the_report_shows_the_candidates_that_a_model_was_chosen_from(
    run: Run, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrained_latency, "time_networks", pretend({"glyphs": 4.0}))
    gone = Candidate(name="gone", model=ModelSpec(name="resnet18", weights="gone.safetensors"))
    ranked = select_model.rank_candidates(domain, CPU, [*small_candidates(), gone], None, tmp_path)
    written = {**run.report, "selected": {**ranked, "chosen": "random", "why": "it was asked for"}}
    assert "## Model candidates" in markdown.render(written)
    assert "First: random (it was asked for)." in html_report.render(written)
    assert "weights file gone.safetensors does not exist" in html_report.render(written)
    assert "## Candidates left out" in markdown.render(written)
    best = ranked["candidates"][0]
    assert best["bounds"]["probe"]["low"] <= best["scores"]["probe"] <= best["bounds"]["probe"]["high"]
    assert "## Model candidates" not in markdown.render(run.report)


@pytest.mark.slow
def test_the_verb_ranks_times_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw(tmp_path / "pictures", {"ant": 40, "bee": 40, "cat": 40})
    (tmp_path / "own.toml").write_text(
        'schema = 1\n[[candidates]]\nname = "to 4"\nreuse = {keep = "features.4"}\nmay_ship = "yes"\n'
        '[candidates.model]\nname = "squeezenet1_1"\nweights = "zoo:squeezenet1_1_glyphs"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n'
    )
    asked = [
        "select",
        "--data",
        str(folder),
        "--image-size",
        "32",
        "-c",
        f"{tmp_path / 'own.toml'},zoo:squeezenet1_1_glyphs",
        "--layers",
    ]
    monkeypatch.setattr("sys.argv", ["toolchain", *asked, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in {0, None}
    said = capsys.readouterr().out
    assert "First: " in said
    found = json.loads((tmp_path / "out/select/image-folder.cpu.json").read_text())
    by_name = {row["name"]: row for row in found["candidates"]}
    assert (
        by_name["to 4"]["latency_ms"]["f32"]["estimate"]
        < by_name["squeezenet1_1_glyphs"]["latency_ms"]["f32"]["estimate"]
    )
    assert by_name["to 4"]["macs"] < by_name["squeezenet1_1_glyphs"]["macs"]
    assert found["advice"]["depths"][0]["block"] == "features.0"
    shown = (tmp_path / "out/select/image-folder.cpu.html").read_text()
    assert "<svg" in shown
    assert "squeezenet1_1_glyphs" in (tmp_path / "out/select/image-folder.cpu.md").read_text()
    assert select.render_html(found) == shown
    monkeypatch.setattr(untrained_latency, "_compile_and_time", None)  # nothing is measured twice
    monkeypatch.setattr(extract_features, "_extract_splits", None)
    with pytest.raises(SystemExit) as again:
        main()
    assert again.value.code in {0, None}
