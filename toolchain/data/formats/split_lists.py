"""Text files that list the images of a split: `train.txt`, `val.txt` and `test.txt`, or one list of all images.

A line is `path label` or `path<TAB>label`, the label a name or an index into `classes.txt`; or a path alone, whose folder
is the label.
"""

from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.image_formats import is_image
from toolchain.data.formats.folders.split_folders import Split, split_of_name
from toolchain.data.formats.tables import columns, list_rows, text_file
from toolchain.data.formats.tables.delimited_text import split_header
from toolchain.data.formats.tables.label_rows import FOLDER_NAME, LabelRow
from toolchain.data.formats.tables.list_rows import LabelTable
from toolchain.data.labelled_files import LabelledFiles

ORDER = 40
EXPECTED = "a folder with train.txt, val.txt and test.txt, or one .txt, of lines `path label` or `path`"


def recognise(path: Path) -> bool:
    """Return whether the path is a text file, or a folder with a list of training images."""
    if path.is_dir():
        return any(split == "train" and _is_list(file) for split, file in _list_split_files(path))
    return path.suffix.lower() == ".txt" and not columns.has_columns(split_header(text_file.peek_first_line(path)))


def read(path: Path, domain: Domain, cache: Path) -> LabelledFiles:
    """List the images that text files name.

    Raises:
        ToolchainError: a file is empty or not text, lines are of several kinds, or as `list_rows`.
    """
    lists = _list_split_files(path) if path.is_dir() else [(None, path)]
    rows, kinds = [], dict[str, None]()
    for split, file in lists:
        listed, kind = _read_list(file, split)
        rows += listed
        kinds[kind] = None
    names = ", ".join(file.name for _, file in lists)
    title = f"{'split lists' if len(lists) > 1 else 'a list'} ({names}; each line {' or '.join(kinds)})"
    table = LabelTable(path=path, title=title, rows=rows, tables=tuple(file for _, file in lists))
    return list_rows.list_rows(table, domain)


def _list_split_files(folder: Path) -> list[tuple[Split | None, Path]]:
    """List the text files of a folder that are named as splits."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".txt" and file.is_file())
    return [(split, file) for file in files if (split := split_of_name(file.stem))]


def _is_list(path: Path) -> bool:
    """Return whether a text file's first line names an image."""
    line = text_file.peek_first_line(path).strip()
    name = line.partition("\t")[0] if "\t" in line else line
    return is_image(_to_path(name)) or is_image(_to_path(_split_at_blank(name)[0]))


def _read_list(path: Path, split: Split | None) -> tuple[list[LabelRow], str]:
    """Return the rows of a list, and what its lines hold."""
    lines = [
        (number, line.strip()) for number, line in enumerate(text_file.read_text(path).splitlines(), 1) if line.strip()
    ]
    has_tabs = any("\t" in line for _, line in lines)
    alone = not has_tabs and all(is_image(_to_path(line)) for _, line in lines)
    rows = []
    for number, line in lines:
        name, label = (line, FOLDER_NAME) if alone else _split_at_tab(line) if has_tabs else _split_at_blank(line)
        if not alone and (not label or is_image(_to_path(label))):
            raise ToolchainError(
                f"{path} line {number}: {line!r} is not `path{'<TAB>' if has_tabs else ' '}label` as other lines are; write "
                "the label behind each path, or none at all if the images lie in a folder of the class's name"
            )
        rows.append(LabelRow(table=path, line=number, name=name, label=label, split=split))
    return rows, "path" if alone else "path<TAB>label" if has_tabs else "path label"


def _split_at_tab(line: str) -> tuple[str, str]:
    name, _, label = line.partition("\t")
    return name.strip(), label.strip()


def _split_at_blank(line: str) -> tuple[str, str]:
    """Return path and label of a line; a path may hold blanks, a label may not."""
    name, _, label = line.rpartition(" ")
    return (name.strip(), label) if name else (label, "")


def _to_path(name: str) -> Path:
    return Path(name.replace("\\", "/"))
