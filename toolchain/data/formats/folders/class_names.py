"""Compare class names as people read them: in one Unicode form, and without two that differ in case only.

A Mac writes é as e and an accent (Unicode form NFD), Linux and Windows as one character (NFC), and both look the same.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolchain.core.errors import ToolchainError

ClassFolders = Mapping[str, Sequence[Path]]  # images by class name


def to_nfc(name: str) -> str:
    """Return a name in Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def merge_spellings(splits: Mapping[str, ClassFolders], root: Path) -> tuple[dict[str, ClassFolders], list[str]]:
    """Give a class the same name in all splits, NFC where their Unicode forms differ.

    Args:
        splits: images by split and name of the class folder.
        root: the dataset's folder, for messages.

    Returns:
        The images by split and class, in the same order, and a note for each class whose forms differ.

    Raises:
        ToolchainError: two class names differ in case only, or in Unicode form only within one split.
    """
    spellings: dict[str, list[tuple[str, str]]] = {}  # split and name, by what the names have in common
    for split, by_class in splits.items():
        for name in by_class:
            spellings.setdefault(to_nfc(to_nfc(name).lower()), []).append((split, name))
    notes, names = [], {}
    for places in spellings.values():
        variants = {name for _, name in places}
        if len(variants) > 1:
            _check_spellings(places, root)
            notes.append(
                f"class {to_nfc(places[0][1])!r} is spelled in two Unicode forms: {_list_places(places)}; read as one"
            )
            names.update({name: to_nfc(name) for name in variants})
    renamed: dict[str, ClassFolders] = {
        split: {names.get(name, name): paths for name, paths in by_class.items()} for split, by_class in splits.items()
    }
    return renamed, notes


def _check_spellings(places: Sequence[tuple[str, str]], root: Path) -> None:
    """Check that names differ in Unicode form only, and that no split has two of them."""
    if len({to_nfc(name) for _, name in places}) > 1:
        raise ToolchainError(
            f"{root} has class names that differ in case only: {_list_places(places)}. Give the folders of one class the same "
            "name; rename them if they are different classes"
        )
    if len({split for split, _ in places}) < len(places):
        raise ToolchainError(
            f"{root} has class names that look the same, but differ in their Unicode form: {_list_places(places)}. Merge these "
            "folders"
        )


def _list_places(places: Sequence[tuple[str, str]]) -> str:
    """Return the spellings with the splits that have them: "'Cat' in train/, 'cat' in test/"."""
    mixed_forms = len({to_nfc(name) for _, name in places}) < len({name for _, name in places})
    splits: dict[str, list[str]] = {}
    for split, name in places:
        splits.setdefault(name, []).append("" if split == "all" else f"{split}/")
    return ", ".join(
        f"{_show(name, with_codes=mixed_forms)}{' in ' if all(held) else ''}{', '.join(held)}"
        for name, held in splits.items()
    )


def _show(name: str, *, with_codes: bool) -> str:
    """Return a name in quotes; with its Unicode form and codes where another one looks the same."""
    if not with_codes:
        return repr(name)
    form = "NFC" if name == to_nfc(name) else "NFD"
    return f"{name!r} ({form}, {name!a})"
