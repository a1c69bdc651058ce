"""The line of the model's own code that an error or an operation comes from, in words."""

import functools
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from toolchain.core.registry import PACKAGE_FOLDER

TORCH_FOLDER = Path(torch.__file__).resolve().parent
PYTHON_FOLDER = Path(traceback.__file__).resolve().parent
NOT_THE_MODELS = (f"{TORCH_FOLDER}/", f"{PACKAGE_FOLDER}/")
EXPORT_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)')


def find_line(reason: BaseException) -> str:
    """Return the innermost line of the model's code that an error or one of its causes names; "" where there is none.

    Args:
        reason: an error of the model's `forward`, or of `torch.export`, whose message quotes the code.
    """
    error: BaseException | None = reason
    while error is not None:
        frames = [
            (frame.filename, frame.lineno or 0, frame.line or "") for frame in traceback.extract_tb(error.__traceback__)
        ]
        quoted = [(file, int(number), code) for file, number, code in EXPORT_FRAME.findall(str(error))]
        for candidates in (quoted, frames):
            if line := _describe_innermost(candidates):
                return line
        error = error.__cause__ or error.__context__
    return ""


def find_calling_line(frame: FrameType | None = None) -> str:
    """Return the line of the model's code that is running now; "" where none is."""
    frame = frame or sys._getframe(1)
    while frame is not None and not _is_the_models(frame.f_code.co_filename):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    summary = traceback.extract_stack(frame, limit=1)[0]
    return _describe(summary.filename, summary.lineno or 0, summary.line or "")


def _describe_innermost(frames: Sequence[tuple[str, int, str]]) -> str:
    models = [frame for frame in frames if _is_the_models(frame[0])]
    return _describe(*models[-1]) if models else ""


@functools.cache
def _is_the_models(file: str) -> bool:
    path = str(Path(file).resolve()) if not file.startswith("<") else file
    is_python = path.startswith(str(PYTHON_FOLDER)) and "site-packages" not in path
    return not (path.startswith(NOT_THE_MODELS) or path.startswith("<") or is_python)


def _describe(file: str, number: int, code: str) -> str:
    return f"{Path(file).name}, line {number}: {code.strip()}"
