"""Recognise the training, validation and test folders of a dataset, by the names that people give them.

A folder is a split if its name says so and class folders lie in it. A folder that only looks like a split is an error:
as a class it would teach nonsense, and left out its images would be missing without a word.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.image_formats import is_image
from toolchain.data.formats.folders.system_files import is_system_name, list_folders, walk_files

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {  # in any case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLIT_TITLES: Mapping[Split, str] = {"train": "training", "val": "validation", "test": "test"}
NAMES_OF_CLASSES = {"train", "training", "valid", "dev"}  # names of splits that a class may well have, too
LOOKS_LIKE_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing|eval|evaluation|holdout)(?![a-z]).*",
    re.IGNORECASE | re.DOTALL,
)
CLASSES_HINT = "if these are classes, list them in the domain (classes = [...])"


def split_of_name(name: str) -> Split | None:
    """Return the split that a folder's name stands for; None for any other name."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def has_images(folder: Path) -> bool:
    """Return whether an image lies in a folder, at any depth."""
    return any(is_image(path) for path in walk_files(folder))


def has_images_directly(folder: Path) -> bool:
    """Return whether an image lies in a folder itself."""
    return any(is_image(path) and not is_system_name(path.name) and path.is_file() for path in folder.iterdir())


def list_class_folders(folder: Path) -> list[Path]:
    """List the folders directly in a folder that hold images, at any depth."""
    return [path for path in list_folders(folder) if has_images(path)]


def find_split_folders(root: Path, classes: Sequence[str] = ()) -> dict[Split, Path]:
    """Find the split folders in a dataset's folder.

    Args:
        root: folder that holds the splits or the classes.
        classes: class names of the domain; folders that it lists are no splits, where all of them lie in `root`.

    Returns:
        The folder of each split, training first; empty where the folders in `root` are classes.

    Raises:
        ToolchainError: a folder looks like a split and cannot be taken as one, or two stand for the same split.
    """
    folders = list_folders(root)
    names = {folder.name for folder in folders}
    if set(classes) <= names and any(LOOKS_LIKE_SPLIT.fullmatch(name) for name in classes):
        return {}
    named = [(split, folder) for folder in folders if (split := split_of_name(folder.name))]
    others = [folder for folder in folders if not split_of_name(folder.name) and has_images(folder)]
    splits = [(split, folder) for split, folder in named if _is_split(folder, others)]
    if splits:
        _check_all_taken(root, named, splits, others)
    elif named:
        _check_named_classes(root, [folder for _, folder in named], others)
    else:
        _check_other_names(root, others)
    return {split: folder for wanted in SPLITS for split, folder in splits if split == wanted}


def describe_split_names(split_folders: Mapping[Split, Path]) -> str:
    """Return which folder is read as which split where a name is not the plain one; "" where all are plain."""
    renamed = {split: folder.name for split, folder in split_folders.items() if folder.name != split}
    return ", ".join(f"{name}/ is read as the {SPLIT_TITLES[split]} split" for split, name in renamed.items())


def _is_split(folder: Path, others: Sequence[Path]) -> bool:
    """Return whether class folders lie in a folder; beside other image folders, images must not lie in it directly."""
    may_hold_images = not others or folder.name in SPLITS
    return bool(list_class_folders(folder)) and (may_hold_images or not has_images_directly(folder))


def _check_all_taken(
    root: Path,
    named: Sequence[tuple[Split, Path]],
    splits: Sequence[tuple[Split, Path]],
    others: Sequence[Path],
) -> None:
    """Check that beside the splits no other folder looks like one, and that there is one folder a split."""
    for split, folder in named:
        twins = [other.name for also, other in named if also == split]
        if len(twins) > 1:
            raise ToolchainError(
                f"{root} has several folders for the {SPLIT_TITLES[split]} split: {_join(twins)}; keep one of them, and move "
                "the others elsewhere"
            )
        if (split, folder) not in splits:
            raise ToolchainError(
                f"{root}: {folder.name}/ looks like the {SPLIT_TITLES[split]} split, but {_describe_content(folder)}; sort "
                "its images into class folders, or move it elsewhere"
            )
    for folder in others:
        if LOOKS_LIKE_SPLIT.fullmatch(folder.name) and list_class_folders(folder):
            raise ToolchainError(
                f"{root}: {folder.name}/ looks like a split, but its name is not that of one; accepted are "
                f"{_list_names()}, in any case. Rename it, or move it elsewhere"
            )
    taken = {split for split, _ in splits}
    certain = any(folder.name == "train" for _, folder in splits) or ("train" in taken and len(taken) > 1)
    if others and not certain:
        raise ToolchainError(
            f"{root}: {_join([folder.name for _, folder in splits])} looks like a split, but "
            f"{_join([folder.name for folder in others])} beside it does not. If the images to train on lie in one of them, "
            f"rename it to train/ and move folders that are no splits elsewhere; {CLASSES_HINT}"
        )


def _check_named_classes(root: Path, named: Sequence[Path], others: Sequence[Path]) -> None:
    """Check that folders with the names of splits, but without class folders, can only be classes."""
    if not others and not any(map(has_images, named)):
        return  # no images at all, which is reported as such
    alone = len(named) == 1 and named[0].name.lower() in NAMES_OF_CLASSES
    if others and alone and has_images_directly(named[0]):
        return
    contents = "; ".join(f"{folder.name}/ looks like a split, but {_describe_content(folder)}" for folder in named)
    raise ToolchainError(
        f"{root}: {contents}. Expected are {root}/train/<class>/<image>, or {root}/<class>/<image>. Sort the images into "
        f"class folders, or move folders that are no splits elsewhere; {CLASSES_HINT}"
    )


def _check_other_names(root: Path, folders: Sequence[Path]) -> None:
    """Check that the folders are not all splits under names that are not accepted, such as train_images/."""
    alike = [
        folder for folder in folders if LOOKS_LIKE_SPLIT.fullmatch(folder.name) and not has_images_directly(folder)
    ]
    if len(alike) > 1 and len(alike) == len(folders):
        raise ToolchainError(
            f"{root}: {_join([folder.name for folder in folders])} look like splits, but their names are not those of splits; "
            f"accepted are {_list_names()}, in any case. Rename them; {CLASSES_HINT}"
        )


def _describe_content(folder: Path) -> str:
    if has_images_directly(folder):
        return "images lie directly in it, not in class folders"
    return "holds no images"


def _join(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def _list_names() -> str:
    return "; ".join("/".join(names) for names in SPLIT_NAMES.values())
