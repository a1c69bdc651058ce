"""List the classes and functions that a checkpoint of torch.save names, by taking its pickle apart without running it."""

import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LAYERS = "torch.nn.modules."
PART_OF_TENSORS = ("torch.", "collections.OrderedDict", "_codecs.")  # apart from LAYERS
FIRST_ATTRIBUTE = "_parameters"  # of a pickled torch module
LEGACY_PICKLES = 4  # in torch's format before 1.6: magic number, version, machine, content
LEGACY_MARK = "module"  # stands before a class in that format


@dataclass(frozen=True)
class PickledClasses:
    """What a pickle names that is not part of tensors and dictionaries."""

    names: tuple[str, ...]  # `package.Class`, in order
    model: str  # the class of the first whole torch module; "" if there is none
    key: str  # of the dictionary entry that holds this module; "" where it is the whole content


def list_classes(path: Path) -> PickledClasses:
    """List the classes and functions in a file of torch.save.

    Raises:
        ValueError: the pickle is damaged.
    """
    names, key, model = list[str](), "", ""
    text, last_name, last_key = "", "", ""
    for operation, argument in _content(path):
        if operation == "GLOBAL" and (argument.startswith(LAYERS) or not argument.startswith(PART_OF_TENSORS)):
            names.append(argument)
            last_name, last_key = argument, text
        elif "UNICODE" in operation and argument != LEGACY_MARK:
            text = argument
            if text == FIRST_ATTRIBUTE and last_name and not model:
                model, key = last_name, last_key
    return PickledClasses(tuple(dict.fromkeys(names)), model, key)


def _content(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the operations of the pickle that describes the content, each with its argument as text."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as file:
                yield from _operations(file)
        return
    with path.open("rb") as legacy:
        for _ in range(LEGACY_PICKLES - 1):
            list(_operations(legacy))
        yield from _operations(legacy)


def _operations(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    texts = ["", ""]  # the last two, which name a class from protocol 4 on
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "STACK_GLOBAL":
            yield "GLOBAL", ".".join(texts)
        elif operation.name == "GLOBAL":
            yield "GLOBAL", str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
        else:
            texts = [texts[1], str(argument)] if "UNICODE" in operation.name else texts
            yield operation.name, str(argument)
