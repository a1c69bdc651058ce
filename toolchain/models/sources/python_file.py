"""Build the user's own model: a function in a Python file or package that returns an `nn.Module`.

A recipe names it as `net.py:build` or `package.module:build`. The code is tried in a process of its own first, so that one
that exits, crashes or prints does not take the job along; its errors are shown with the user's own line.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from toolchain.config.model_reference import PythonModel, parse
from toolchain.core import files, progress, registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models.sources import user_code
from toolchain.models.sources.torchvision_import import import_torchvision

CLASS_PARAMETERS = ("classes", "num_classes")  # the number of classes is passed to a function that takes one of them
SECONDS_TO_BUILD = 600.0


def build_untrained(reference: PythonModel, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the user's function, after it has succeeded once in a process of its own.

    Args:
        reference: the function.
        classes: passed to it where it has a parameter `classes` or `num_classes`.
        arguments: passed by name.

    Raises:
        ToolchainError: no such file or function; it cannot be imported or called, exits, or returns something else than a
            module.
    """
    _try_in_process(reference, classes, json.dumps(dict(arguments), sort_keys=True))
    return call(reference, classes, arguments)


def takes_classes(reference: PythonModel) -> bool:
    """Return whether the function asks for the number of classes."""
    return any(name in inspect.signature(_find_function(reference)).parameters for name in CLASS_PARAMETERS)


def call(reference: PythonModel, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Import the user's code here and call the function; arguments and errors as `build_untrained`."""
    with _user_code(reference):
        function = _find_function(reference)
        given = _bind_arguments(reference, function, classes, arguments)
        try:
            model = function(**given)
        except SystemExit as reason:
            raise ToolchainError(
                f"{reference.name} ended the program (exit status {reason.code}) {user_code.describe_line(reason, reference.folder)}; "
                "it has to return an nn.Module"
            ) from reason
        except Exception as reason:
            raise ToolchainError(
                f"{reference.name} failed: {type(reason).__name__}: {first_line(reason)}, "
                f"{user_code.describe_line(reason, reference.folder)}"
            ) from reason
    if not isinstance(model, nn.Module):
        raise ToolchainError(
            f"{reference.name} returned {_describe_type(model)}; it has to return one nn.Module, without its weights file or optimizer"
        )
    return model


@contextlib.contextmanager
def _user_code(reference: PythonModel) -> Iterator[None]:
    """Let the user's imports start from their folder, and keep what the code prints off the results on stdout."""
    folder = str(reference.folder)
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # for imports inside `forward`


def _find_function(reference: PythonModel) -> Callable[..., object]:
    with _user_code(reference):
        module = _import_module(reference)
    function: Callable[..., object] | None = getattr(module, reference.function, None)
    if not callable(function):
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
        raise ToolchainError(
            f"{reference.source} has no function {reference.function!r}; {registry.suggest(reference.function, names)}"
        )
    return function


def _import_module(reference: PythonModel) -> ModuleType:
    """Import the user's file or module once; later calls return the same."""
    try:
        try:
            return _import_code(reference)
        except RuntimeError as reason:
            if "torchvision::nms does not exist" not in str(reason):
                raise
        import_torchvision()  # the user's code imports it, and it needs what this declares
        return _import_code(reference)
    except ToolchainError:
        raise
    except ModuleNotFoundError as reason:
        if reason.name and reference.source.startswith(reason.name):
            raise ToolchainError(
                f"there is no Python module {reason.name!r} for {reference.name}: it is looked for in the working directory "
                "and among the installed packages; for a file, give its path, such as models/net.py:build"
            ) from reason
        raise ToolchainError(
            f"{reference.source} imports {reason.name}, which is not installed and does not lie beside it, "
            f"{user_code.describe_line(reason, reference.folder)}; install it in the toolchain's environment"
        ) from reason
    except SystemExit as reason:
        raise ToolchainError(
            f"{reference.source} ended the program when it was imported (exit status {reason.code}), "
            f'{user_code.describe_line(reason, reference.folder)}; put what runs a script under if __name__ == "__main__":'
        ) from reason
    except Exception as reason:
        raise ToolchainError(
            f"{reference.source} cannot be imported: {type(reason).__name__}: {first_line(reason)}, "
            f"{user_code.describe_line(reason, reference.folder)}"
        ) from reason


def _import_code(reference: PythonModel) -> ModuleType:
    if not reference.source.endswith(".py"):
        return importlib.import_module(reference.source)
    return _import_file(Path(reference.source).resolve())


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        inside = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; {path.parent} holds {', '.join(inside[:5])}" if inside else ""
        raise ToolchainError(f"the model file {path} does not exist{hint}; give FILE.py:FUNCTION")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    # under its own name where that is free, so that other files of the user's may import it
    name = path.stem if loaded is None and path.stem.isidentifier() else f"user_model_{files.digest(str(path))}"
    if name in sys.modules:
        return sys.modules[name]
    if clash := user_code.find_clash(path.parent):
        raise ToolchainError(
            f"{path} lies beside {clash[0]}, and another module of that name is loaded already, {clash[1]}: two models of one "
            "job cannot have helper modules of one name; rename one"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _bind_arguments(
    reference: PythonModel, function: Callable[..., object], classes: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments by name, with the number of classes where the function asks for it.

    Raises:
        ToolchainError: an argument that it does not have, or one without a default that was not given.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return dict(arguments)  # a function without a signature that Python can read
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (unknown := sorted(set(arguments) - set(parameters))):
        raise ToolchainError(
            f"{reference.name} has no argument {', '.join(unknown)}; [model] arguments may name {', '.join(parameters) or 'none'}"
        )
    given = dict(arguments)
    for name in CLASS_PARAMETERS:
        if name in parameters and not set(CLASS_PARAMETERS) & set(given):
            given[name] = classes
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in given
        and parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    ]
    if missing:
        raise ToolchainError(
            f"{reference.name} needs the argument {', '.join(missing)}; give it in the recipe: "
            f"[model] arguments = {{ {', '.join(f'{name} = …' for name in missing)} }}, or a default in the function"
        )
    return given


def _describe_type(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(entry).__name__ for entry in value) or 'nothing'}"
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__} and not an instance"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


@functools.cache
def _try_in_process(reference: PythonModel, classes: int, arguments: str) -> None:
    """Build the model once in another process.

    Raises:
        ToolchainError: as there; or the process ended without an outcome.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", __name__, reference.name, str(classes), arguments, str(outcome)]
        progress.log(f"model: trying {reference.name}")
        try:
            ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS_TO_BUILD)
        except subprocess.TimeoutExpired as reason:
            raise ToolchainError(
                f"{reference.name} returned no model within {SECONDS_TO_BUILD:.0f} s; does it wait for something, or train?"
            ) from reason
        if not outcome.is_file():
            lines = (ended.stderr or ended.stdout).strip().splitlines()
            said = f"; its last line: {lines[-1]}" if lines else ""
            status = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit status {ended.returncode}"
            raise ToolchainError(f"{reference.name} ended its process ({status}) before it returned a model{said}")
        if message := json.loads(outcome.read_text())["error"]:
            raise ToolchainError(message)


def main(name: str, classes: str, arguments: str, outcome: str) -> None:
    """Build a model in this process and write the error, or "" for success, to the file `outcome`."""
    reference = parse(name)
    assert reference is not None
    try:
        call(reference, int(classes), json.loads(arguments))
        error = ""
    except ToolchainError as reason:
        error = str(reason)
    Path(outcome).write_text(json.dumps({"error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
