"""Files are read or refused with file, key, what it got, and what is accepted."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from toolchain.config import overrides, read_config
from toolchain.config.recipe import Recipe
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.search import search_pruning


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text('schema = 1\ndomain = "digits"\n' + text)
    return str(path)


MODEL = '[model]\nname = "resnet18"\n'


@pytest.mark.parametrize("kind", ["recipes", "targets", "calibration"])
def test_every_shipped_file_is_valid_and_described(kind: registry.ConfigKind) -> None:
    readers = {
        "recipes": read_config.read_recipe,
        "targets": read_config.read_target,
        "calibration": read_config.read_domain,
    }
    names = registry.list_names(kind)
    assert names
    for name in names:
        assert readers[kind](name).description


def test_every_recipe_names_a_domain_that_exists() -> None:
    assert {read_config.read_recipe(name).domain for name in registry.list_names("recipes")} <= set(
        registry.list_names("calibration")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL + "width = 3", "unknown key model.width"),
        (MODEL + "[prune]\nratoi = 0.3", r"unknown key prune.ratoi; did you mean 'ratio'\?"),
        (MODEL + "[quantize.train]\nepoch = 3", r"unknown key quantize.train.epoch; did you mean 'epochs'\?"),
        (MODEL + "[prune]\nratio = 1.5", "prune.ratio = 1.5: must be from 0"),
        (MODEL + '[prune]\nratio = "much"', "prune.ratio = 'much'"),
        (MODEL + '[prune]\ncriterion = "magnitud"', "did you mean 'magnitude'"),
        (MODEL + '[prune]\nranking = "local"', "prune.ranking = 'local'"),
        (MODEL + "[prune]\nrounds = 0", "prune.rounds = 0: must be at least 1"),
        (
            MODEL + "[prune]\nrounds = 4\n[recover]\nepochs = 3",
            "rounds = 4: the rounds share recover.epochs = 3, so at most 3",
        ),
        (MODEL + "[prune]\nrounds = 2\n[recover]\nepochs = 0", "rounds = 2: .* at most 1"),
        (MODEL + "[prune]\nsparsity = -1e-3", "prune.sparsity = -0.001: 0 for no penalty"),
        (MODEL + "[prune]\nsparsity = inf", "prune.sparsity = inf: .* at most 1"),
        (
            MODEL + "[prune]\nsparse_epochs = 3",
            "prune.sparse_epochs = 3: has no effect while prune.sparsity = 0",
        ),
        (MODEL + "[prune]\nsparsity = 1e-3\nsparse_epochs = 0", "prune.sparse_epochs = 0: at least 1"),
        (MODEL + "[adapt]\nbatch_size = 1", "adapt.batch_size = 1"),
        (MODEL + "[adapt]\nlearning_rate = -1.0", "adapt.learning_rate"),
        (MODEL + "mean = [0.5]", "three numbers"),
        ("balance = 1.5\n" + MODEL, "balance = 1.5: from 0 .accuracy. to 1"),
        ("seeds = 0\n" + MODEL, "seeds = 0"),
        (MODEL + '[teacher]\nname = "resnet50"', "has no effect while adapt.distill = 0"),
        (MODEL + '[teacher]\nnames = "resnet50"', r"unknown key teacher.names; did you mean 'name'\?"),
        (MODEL + '[[join]]\ndomain = "x"\nweigth = 1', r"unknown key join.0.weigth; did you mean 'weight'\?"),
        (MODEL + '[[join]]\ndomain = "x"\nweight = 0.0', "join 'x': weight = 0.0"),
        (MODEL + "[augment]\nmixup = 9.0", "augment.mixup = 9.0: at most 2"),
        (MODEL + "[adapt]\nlayer_decay = 0.0", "adapt.layer_decay = 0.0"),
        (MODEL + "[quantize]\nsearch_seconds = -1", "quantize.search_seconds = -1"),
        (MODEL + '[quantize]\nmethod = "gptq"', "quantize.method = 'gptq'"),
        (
            MODEL + '[quantize]\ncalibration = "entropy"',
            "quantize.calibration = 'entropy': input should be .*'minmax'.* or 'auto'",
        ),
        ('name = "../../elsewhere"\n' + MODEL, "name = '../../elsewhere': letters, digits"),
        ('name = "work"\n' + MODEL, "not work or data"),
        (MODEL + "[budget]\naccuracy_drop = nan", "accuracy_drop = nan: must be a number that is not negative"),
        ("model = 3", r"model = 3: this is a table, written as \[model\]"),
        ('reuse = "atuo"\n' + MODEL, r"reuse = 'atuo': input should be 'auto', or a table, written as \[reuse\]"),
        (
            '[model]\nname = "auto"\nweights = "own.pth"',
            "model.weights = 'own.pth': with model.name = 'auto' every candidate",
        ),
        (MODEL + '[reuse]\nkep = "layer1.0"', r"unknown key reuse.kep; did you mean 'keep'\?"),
        (MODEL + "[reuse]\nkeep = 4", "reuse.keep = 4: input should be a valid string"),
        ('[model]\nname = "auto:small"\narguments = {width_mult = 0.5}', "model.arguments = .*brings its own"),
        ("image_size = [4, 4]\n" + MODEL, "each between 8 and 4096"),
        ("", "model is missing"),
        (MODEL + "[", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ToolchainError, match=message) as error:
        read_config.read_recipe(write(tmp_path, text))
    assert "mine.toml" in str(error.value)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text("schema = 9")
    with pytest.raises(ToolchainError, match="this version reads schema = 1"):
        read_config.read_recipe(str(tmp_path / "new.toml"))


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ToolchainError, match="did you mean 'openvino'"):
        read_config.read_target("openvno")
    with pytest.raises(ToolchainError, match="did you mean 'digits'"):
        read_config.read_recipe("digit")


def test_a_precision_that_a_runtime_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "odd.toml").write_text('runtime = "onnxruntime"\nprecisions = ["f32", "bf16"]')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolchainError, match="onnxruntime does not support bf16; accepted: f32, int8"):
        read_config.read_target("odd")


@pytest.mark.parametrize(
    ("isa", "scheme", "message"),
    [
        (
            "x86-64-avx2",
            'activations = "uint8"',
            "has no fast kernels for uint8 activations with 8-bit weights; accepted: uint8 activations with 7-bit",
        ),
        ("x86-64-vnni", 'activations = "int8"', "accepted: uint8 activations with 8-bit weights or uint8 activations"),
        (
            "arm64",
            "weight_bits = 7",
            "arm64 has no fast kernels for uint8 activations with 7-bit weights; accepted: int8 activations with 8-bit",
        ),
        ("riscv", "weight_bits = 8", "isa = 'riscv'"),
    ],
)
def test_a_scheme_that_the_instructions_do_not_serve_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str, scheme: str, message: str
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "odd.toml").write_text(f'runtime = "onnxruntime"\nisa = "{isa}"\n[scheme]\n{scheme}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolchainError, match=message):
        read_config.read_target("odd")


def test_a_target_to_borrow_from_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "odd.toml").write_text('runtime = "onnxruntime"\nfit_like = "cpuu"')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolchainError, match="fit_like = 'cpuu'; did you mean 'cpu'"):
        read_config.read_target("odd")


def test_a_target_does_not_borrow_from_itself_or_lead_out_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "targets").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets" / "odd.toml").write_text('runtime = "onnxruntime"\nfit_like = "odd"')
    with pytest.raises(ToolchainError, match="cannot borrow from itself"):
        read_config.read_target("odd")
    (tmp_path / "targets" / "odd.toml").write_text('runtime = "onnxruntime"\nname = "../odd"')
    with pytest.raises(ToolchainError, match="name = '../odd'"):
        read_config.read_target("odd")


def test_the_users_own_repository_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "cpu.toml").write_text('runtime = "onnxruntime"\nthreads = 3')
    monkeypatch.chdir(tmp_path)
    assert read_config.read_target("cpu").threads == 3
    assert "openvino" in registry.list_names("targets")


@pytest.mark.parametrize("pattern", ["(", "scene"])
def test_a_group_pattern_that_names_no_group_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "odd.toml").write_text(f"group_pattern = '{pattern}'")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolchainError, match="a regular expression with one .group."):
        read_config.read_domain("odd")


def test_flags_change_recipe_and_domain() -> None:
    flags = overrides.Flags(
        data="there", weights="w.pth", image_size="48x32", epochs=2, seed=7, seeds=3, balance=0.5, on_corrupt="skip"
    )
    job = overrides.read_job("trashnet", "cpu", flags, Path("out"))
    recipe, target, domain = job.recipe, job.target, job.domain
    assert (domain.path, domain.on_corrupt) == ("there", "skip")
    assert (recipe.model.weights, recipe.image_size, recipe.seed) == ("w.pth", (48, 32), 7)
    assert (recipe.seeds, recipe.balance) == (3, 0.5)
    assert {recipe.adapt.epochs, recipe.recover.epochs, recipe.quantize.train.epochs} == {2}
    assert target.name == "cpu"


def test_a_ratio_and_a_latency_are_not_both_given() -> None:
    with pytest.raises(ToolchainError, match="--ratio 0.5 and --latency 0.4x both set how far to prune"):
        overrides.read_recipe("digits", overrides.Flags(ratio=0.5, latency="0.4x"))


def test_a_latency_takes_the_place_of_the_recipes_ratio() -> None:
    recipe, _ = overrides.read_recipe("solar", overrides.Flags(latency="0.5x", resolution=0.65))
    assert (recipe.prune.ratio, recipe.budget.latency, recipe.prune.resolution) == (None, "0.5x", 0.65)
    assert read_config.read_recipe("solar").prune.ratio == 0.5
    with pytest.raises(
        ToolchainError, match=r"prune\.resolution = 2\.0: the smallest share of each side, from 0\.25 to 1"
    ):
        overrides.read_recipe("solar", overrides.Flags(resolution=2.0))


def test_a_flag_for_fewer_epochs_leaves_no_round_without_one(tmp_path: Path) -> None:
    mine = write(tmp_path, MODEL + "[prune]\nrounds = 5\nsparsity = 1e-3\nsparse_epochs = 8")
    recipe, _ = overrides.read_recipe(mine, overrides.Flags(epochs=2))
    assert (recipe.prune.rounds, recipe.prune.sparse_epochs) == (2, 2)
    assert (
        overrides.read_recipe("digits", overrides.Flags(epochs=1))[0].prune == read_config.read_recipe("digits").prune
    )


def test_another_model_drops_the_arguments_of_the_recipes_own() -> None:
    recipe, _ = overrides.read_recipe("trashnet", overrides.Flags(model="resnet18", weights="mine.pth"))
    assert (recipe.model.arguments, recipe.model.weights, recipe.model.norm_eps) == ({}, "mine.pth", None)


@pytest.mark.parametrize(
    ("flags", "message"), [({"image_size": "big"}, "HEIGHTxWIDTH"), ({"on_corrupt": "no"}, "on_corrupt")]
)
def test_wrong_flags_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ToolchainError, match=message):
        overrides.read_job("digits", "cpu", overrides.Flags(**flags), Path("out"))


def test_weights_beside_the_recipe_are_found(tmp_path: Path) -> None:
    for name in ("own", "large"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    teacher = '\n[teacher]\nname = "resnet50"\nweights = "large.safetensors"\n[adapt]\ndistill = 0.5'
    found = read_config.read_recipe(write(tmp_path, MODEL + 'weights = "own.safetensors"' + teacher))
    assert found.model.weights == str(tmp_path / "own.safetensors")
    assert found.teacher
    assert found.teacher.weights == str(tmp_path / "large.safetensors")


def test_epochs_on_the_command_line_are_those_that_are_trained() -> None:
    recipe, _ = overrides.read_recipe("image-folder", overrides.Flags(epochs=1))
    assert (recipe.adapt.epochs, recipe.adapt.least_steps) == (1, 0)


def test_schemas_name_every_key() -> None:
    assert "prune" in read_config.json_schema(Recipe)["properties"]


def test_what_the_readme_shows_is_accepted() -> None:
    kinds: dict[str, tuple[registry.ConfigKind, dict[str, Any]]] = {
        "candidates": ("shortlists", {}), "model": ("recipes", {}), "reuse": ("recipes", {"domain": "d", "model": {"name": "m"}}),
        "package": ("targets", {"runtime": "onnxruntime"}), "gate": ("targets", {"runtime": "onnxruntime"}),
    }  # fmt: skip
    shown = [
        tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    ]
    assert len(shown) >= 5
    for content in shown:
        kind, rest = next(kinds[name] for name in kinds if name in content)
        found = read_config.validate(
            kind, {"name": "shown", **rest, **{k: v for k, v in content.items() if k != "schema"}}, "README.md"
        )
        if content.get("prune"):
            search_pruning.read_limits(found, found.budget, locked=False)


UTF8_MARK = b"\xef\xbb\xbf"
TEXTS: dict[registry.ConfigKind, str] = {
    "recipes": 'domain = "digits"\r\ndescription = "für Größen"\r\n[model]\r\nname = "resnet18"\r\n',
    "calibration": 'path = "images"\r\n',
    "targets": 'runtime = "onnxruntime"\r\n',
    "shortlists": '[[candidates]]\r\nname = "a"\r\n[candidates.model]\r\nname = "resnet18"\r\n',
}
READERS: dict[registry.ConfigKind, Callable[[str], Any]] = {
    "recipes": read_config.read_recipe, "calibration": read_config.read_domain, "targets": read_config.read_target,
    "shortlists": read_config.read_shortlist,
}  # fmt: skip


@pytest.mark.parametrize("kind", READERS)
def test_a_file_saved_by_windows_notepad_is_read(tmp_path: Path, kind: registry.ConfigKind) -> None:
    for folder, mark in (("plain", b""), ("marked", UTF8_MARK)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_bytes(mark + TEXTS[kind].encode())
    plain, marked = (READERS[kind](str(tmp_path / folder / "mine.toml")) for folder in ("plain", "marked"))
    assert plain == marked


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "is UTF-16 text; TOML is UTF-8: save it as UTF-8"),
        ("utf-16-le", "is UTF-16 text"),
        ("utf-16-be", "is UTF-16 text"),
        ("utf-32", "is UTF-32 text"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, kind: registry.ConfigKind, encoding: str, message: str) -> None:
    (tmp_path / "mine.toml").write_bytes(TEXTS[kind].encode(encoding))
    with pytest.raises(ToolchainError, match=message) as error:
        READERS[kind](str(tmp_path / "mine.toml"))
    assert "mine.toml" in str(error.value)


@pytest.mark.parametrize("mark", [b"", UTF8_MARK])
def test_a_byte_of_an_old_encoding_is_named_with_its_line(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(mark + TEXTS["recipes"].encode("cp1252"))
    with pytest.raises(ToolchainError, match=r"is not UTF-8 text, .* \(byte 0xfc in line 2\): save it as UTF-8"):
        read_config.read_recipe(str(tmp_path / "mine.toml"))
