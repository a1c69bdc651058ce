"""Class names of a trained head, in the forms in which people keep them."""

from pathlib import Path

import pytest

from toolchain.config import labels_file
from toolchain.core.errors import ToolchainError


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("l.txt", "ant\nbee\n", ("ant", "bee")),
        ("l.txt", "\ufeffant\r\n bee \r\n\r\n", ("ant", "bee")),
        ("l.txt", "crane\nbee\ncrane\n", ("crane (0)", "bee", "crane (2)")),
        ("l.txt", "cafe\u0301\nbee", ("caf\u00e9", "bee")),
        ("l.json", '["ant", "bee"]', ("ant", "bee")),
        ("l.json", '{"bee": 1, "ant": 0}', ("ant", "bee")),
        ("l.json", '{"1": "bee", "0": "ant"}', ("ant", "bee")),
        ("l.json", '{"0": "zero", "1": "one", "10": "ten", "2": "two", "3": "3", "4": "4", "5": "5", "6": "6", "7": "7", '
         '"8": "8", "9": "9"}', ("zero", "one", "two", "3", "4", "5", "6", "7", "8", "9", "ten")),
    ],
    ids=["plain", "byte order mark", "twice", "composed", "list", "name to index", "index to name", "numbers as text"],
)  # fmt: skip
def test_names_are_read_in_the_order_of_the_outputs(
    tmp_path: Path, name: str, content: str, names: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert labels_file.read_labels(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"ant\n\nbee\n", "has no name in line 2; every output of the model needs one"),
        ("l.txt", b"ant\n", "has 1 names; a classifier needs at least two"),
        ("l.txt", b"", "has 0 names"),
        ("l.txt", b"\xff\xfeant", "it is not UTF-8 text; accepted: a text file with one name a line"),
        ("l.json", b"{", "is not valid JSON"),
        ("l.json", b'{"ant": 0, "bee": 2}', r"holds no list of names; accepted: .* \{name: index\}"),
        ("l.json", b"3", "holds no list of names"),
    ],
    ids=["gap", "one", "empty", "UTF-16", "no JSON", "index missing", "a number"],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ToolchainError, match=message):
        labels_file.read_labels(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"absent.txt cannot be read: No such file"):
        labels_file.read_labels(tmp_path / "absent.txt")
