"""Read text that people and programs write on any system: UTF-8 with or without a byte-order mark, or UTF-16."""

import codecs
from pathlib import Path

from toolchain.core.errors import ToolchainError

ENCODINGS = (  # by byte-order mark, the longest first
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
SAVE_AS_UTF8 = "save it as UTF-8 (in Excel: Save as, CSV UTF-8)"


def read_text(path: Path) -> str:
    """Return the text of a file, with the line ends of the system that wrote it.

    Raises:
        ToolchainError: it is empty, it cannot be read, or it is not text in UTF-8 or UTF-16.
    """
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}") from reason
    encoding = next((name for mark, name in ENCODINGS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as reason:
        line = content.count(b"\n", 0, reason.start) + 1
        raise ToolchainError(
            f"{path} line {line}: byte 0x{content[reason.start]:02x} is not {'UTF-8' if encoding == 'utf-8-sig' else encoding} "
            f"text; accepted are UTF-8 and UTF-16; {SAVE_AS_UTF8}"
        ) from reason
    if "\0" in text:
        raise ToolchainError(
            f"{path} line {text.count(chr(10), 0, text.index(chr(0))) + 1} is not text; {SAVE_AS_UTF8}"
        )
    if not text.strip():
        raise ToolchainError(f"{path} is empty; give it one line per image")
    return text


def peek_first_line(path: Path) -> str:
    """Return the first line of a text file, as far as it can be read; "" for any other file."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return ""
    encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8-sig")
    return next(iter(start.decode(encoding, errors="replace").splitlines()), "")
