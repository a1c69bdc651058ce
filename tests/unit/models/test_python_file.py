"""A model from the user's Python file: what is passed to it, what its code's hash covers, and each error with the user's line."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import own_models
import pytest
import torch
from torch import nn

from toolchain.config import model_reference
from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.models import build, new_head
from toolchain.models.sources import python_file, user_code


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    with own_models.forget_imports(tmp_path):
        yield own_models.write(tmp_path / "mine")


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the trial in a process of its own, which takes seconds."""
    monkeypatch.setattr(python_file, "_try_in_process", lambda *_: None)


@pytest.mark.parametrize(
    ("name", "source", "function"),
    [
        ("net.py:build", "net.py", "build"),
        ("a b/net.v2.py:Net", "a b/net.v2.py", "Net"),
        ("my.models:build", "my.models", "build"),
        ("net:build", "net", "build"),
    ],
)
def test_a_name_refers_to_a_function(name: str, source: str, function: str) -> None:
    assert model_reference.parse(name) == model_reference.PythonModel(name, source, function)


@pytest.mark.parametrize(
    "name", ["resnet18", "timm:resnet18.a1_in1k", "hf:org", "net.py", "net.py:", "auto:small", "net.onnx"]
)
def test_other_names_are_those_of_libraries(name: str) -> None:
    assert model_reference.parse(name) is None


@pytest.mark.usefixtures("same_process")
def test_classes_and_arguments_are_passed_by_name(net: Path) -> None:
    for function in ("residual", "depthwise", "gated"):
        model = build.build_untrained(ModelSpec(name=f"{net}:{function}"), 5)
        assert model(torch.zeros(1, 3, 12, 10)).shape == (1, 5)
        assert build.find_head(model, 5) == "head"


@pytest.mark.usefixtures("same_process")
def test_a_function_that_does_not_ask_for_classes_gets_a_new_head(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build.build_untrained(ModelSpec(name=f"{net}:branches"), 4)
    assert model(torch.zeros(1, 3, 12, 10)).shape == (1, 4)
    assert "head has 10 outputs; a new head for 4 classes" in capsys.readouterr().out
    assert build.build_untrained(ModelSpec(name=f"{net}:branches", head="keep"), 10)(torch.zeros(1, 3, 8, 8)).shape == (
        1,
        10,
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("pair", "returned a tuple of Net, NoneType; it has to return one nn.Module"),
        ("nothing", r"returned nothing \(None\)"),
        ("named", "returned the class Net and not an instance"),
        (
            "deep",
            r"needs the argument depth, width; give it in the recipe: \[model\] arguments = \{ depth = …, width = … \}",
        ),
        ("leaves", r"ended the program \(exit status 3\) in net.py, line \d+: raise SystemExit\(3\)"),
        ("fails", r'failed: TypeError: .*in net.py, line \d+: return nn.Linear\(classes, "two"\)'),
        ("absent", r"has no function 'absent'; Accepted: Net, residual"),
        ("gate", r"has no function 'gate'; did you mean 'gated'|has no function 'gate'; Did you mean"),
        ("not_a_function", "has no function 'not_a_function'"),
    ],
)
def test_what_the_function_does_wrong_is_said_with_its_line(net: Path, function: str, message: str) -> None:
    with pytest.raises(ToolchainError, match=message):
        own_models.build(net, function)


def test_an_unknown_argument_is_refused(net: Path) -> None:
    with pytest.raises(ToolchainError, match=r"has no argument depth; \[model\] arguments may name classes, width"):
        python_file.call(python_file.parse(f"{net}:gated"), 3, {"depth": 4})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_installed_anywhere", r"imports not_installed_anywhere, which is not installed .*, in broken.py, line 1"),
        ("def build(:\n", r"cannot be imported: SyntaxError: .*in broken.py, line 1: def build\(:"),
        ("x = 1 / 0", "cannot be imported: ZeroDivisionError: division by zero, in broken.py, line 1: x = 1 / 0"),
        ("import sys\nsys.exit()", "ended the program when it was imported .*line 2: sys.exit"),
    ],
)  # fmt: skip
def test_what_the_import_does_wrong_is_said_with_its_line(net: Path, text: str, message: str) -> None:
    broken = net.with_name("broken.py")
    broken.write_text(text)
    with pytest.raises(ToolchainError, match=message):
        own_models.build(broken, "build")
    assert "broken" not in sys.modules


def test_a_missing_file_or_module_is_named(net: Path) -> None:
    with pytest.raises(ToolchainError, match=r"nett.py does not exist; .* holds net.py, user_layers.py"):
        own_models.build(net.with_name("nett.py"), "build")
    with pytest.raises(
        ToolchainError, match="there is no Python module 'no_such_package' for no_such_package.net:build"
    ):
        python_file.call(python_file.parse("no_such_package.net:build"), 3, {})  # type: ignore[arg-type]


def test_a_crash_does_not_take_the_job_along(net: Path) -> None:
    spec = ModelSpec(name=f"{net}:crashes")
    with pytest.raises(ToolchainError, match=r"ended its process \(exit status 7\).*its last line: out of memory"):
        build.build_untrained(spec, 3)


@pytest.mark.usefixtures("same_process")
def test_forward_errors_name_the_line_and_other_outputs_are_refused(net: Path) -> None:
    image = torch.zeros(1, 3, 12, 10)
    with pytest.raises(
        ToolchainError, match=r"does not accept images of 12x10: .*in net.py, line \d+: return self.head"
    ):
        build.build_for_image_size(ModelSpec(name=f"{net}:wrong"), 3, image)
    with pytest.raises(
        ToolchainError, match=r"gives a dictionary with logits, features .* one tensor of logits \[1, 3\]"
    ):
        build.build_for_image_size(ModelSpec(name=f"{net}:two"), 3, image)


@pytest.mark.parametrize(
    ("logits", "given"),
    [
        (torch.zeros(1, 3, 2, 2), r"\[1, 3, 2, 2\]"),
        ((torch.zeros(1, 3),), "a tuple of 1"),
        (torch.zeros(1, 4), r"\[1, 4\]"),
    ],
    ids=["a map", "a tuple", "another number"],
)
def test_an_output_that_is_no_logits_is_described(logits: object, given: str) -> None:
    with pytest.raises(ToolchainError, match=f"the model gives {given} for one image"):
        new_head.check_logits(logits, 3)
    new_head.check_logits(torch.zeros(1, 3), 3)


def test_a_head_that_cannot_be_replaced_is_named() -> None:
    with pytest.raises(ToolchainError, match="the last layer of Sequential, 0, is a 3x3 convolution with 8 outputs"):
        new_head.replace_head(nn.Sequential(nn.Conv2d(3, 8, 3)), 5)
    with pytest.raises(ToolchainError, match="ReLU has no linear layer or convolution"):
        new_head.replace_head(nn.ReLU(), 5)
    model = new_head.replace_head(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False)), 5)
    assert isinstance(model[0], nn.Conv2d)  # type: ignore[index]
    assert model[0].bias is None  # type: ignore[index]


def test_the_hash_covers_the_file_and_what_it_imports_and_nothing_of_libraries(net: Path) -> None:
    model = own_models.build(net, "residual")
    before = user_code.hash_sources(model)
    assert before
    net.with_name("unrelated.py").write_text("x = 1")
    assert user_code.hash_sources(model) == before
    layers = net.with_name("user_layers.py")
    layers.write_text(layers.read_text().replace("torch.relu(x +", "torch.relu(2 * x +"))
    assert user_code.hash_sources(model) != before
    assert user_code.hash_sources(nn.Sequential(nn.Linear(2, 2))) == ""


@pytest.mark.usefixtures("same_process")
def test_the_cache_key_covers_values_that_no_file_holds(net: Path) -> None:
    spec = ModelSpec(name=f"{net}:residual")
    assert build.hash_user_model(spec, 3, 0) == build.hash_user_model(spec, 3, 0)
    assert build.hash_user_model(spec, 3, 0) != build.hash_user_model(spec, 3, 1)
    assert build.hash_user_model(ModelSpec(name="resnet18"), 3, 0) == ()


def test_a_file_may_have_the_name_of_a_module_that_is_loaded(net: Path) -> None:
    twin = net.with_name("json.py")
    twin.write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(2, 2)\n")
    assert isinstance(own_models.build(twin, "build"), nn.Linear)
    assert hasattr(importlib.import_module("json"), "loads")


def test_two_models_with_different_helpers_of_one_name_are_refused(net: Path, tmp_path: Path) -> None:
    own_models.build(net, "residual")
    other = own_models.write(tmp_path / "other")
    other = other.rename(other.with_name("teacher_net.py"))
    with pytest.raises(ToolchainError, match=r"lies beside user_layers\.py.*is loaded already.*rename one"):
        own_models.build(other, "residual")
    other.write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(2, 2)\n")  # imports no helper
    assert isinstance(own_models.build(other, "build"), nn.Linear)
