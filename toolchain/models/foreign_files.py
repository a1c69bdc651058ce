"""Say what a file is that was given as a checkpoint but is none, from its first bytes, with what to do instead."""

import json
import shlex
import string
from pathlib import Path

from toolchain.core.errors import ToolchainError

ACCEPTED = "accepted: a safetensors file, or a state_dict that torch.save wrote"
ACCEPTED_ONNX = "accepted here: an ONNX file, as torch.onnx.export writes it"
HEAD_BYTES = 4096  # of a file, enough for every signature
LFS_START = b"version https://git-lfs.github.com/spec/"
GET_AGAIN = "copy or download it again"
SIGNATURES = (  # offset, bytes there, what the file is, what to do
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it, and give the checkpoint in it"),
    (0, b"BZh", "compressed with bzip2", "unpack it, and give the checkpoint in it"),
    (0, b"\xfd7zXZ", "compressed with xz", "unpack it, and give the checkpoint in it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and give the checkpoint in it"),
    (0, b"Rar!", "a RAR archive", "unpack it, and give the checkpoint in it"),
    (257, b"ustar", "a tar archive", "unpack it, and give the checkpoint in it"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", "give the weights of a torch model"),
    (0, b"\x93NUMPY", "one NumPy array", "give the weights of a torch model"),
    (0, b"GGUF", "a GGUF file", "give the weights of a torch model"),
    (4, b"TFL3", "a TensorFlow Lite model", "give the weights of a torch model"),
    (4, b"ET12", "an ExecuTorch program", "give the checkpoint that it was exported from"),
)
ZIP_START = b"PK\x03\x04"
ONNX_START = b"\x08"  # protobuf: field 1 of ModelProto, ir_version, a small number
ONNX_NEXT = b"\x12\x1a\x22\x28\x32\x3a\x42"  # one of its other fields
LARGEST_ONNX_VERSION = 32


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        ToolchainError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}") from reason


def explain(path: Path, head: bytes) -> ToolchainError:
    """Return the error for a file that is neither safetensors nor written by torch.save.

    Args:
        path: the file.
        head: its first bytes.
    """
    if missing := _explain_missing(path, head):
        return missing
    for offset, signature, description, advice in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return ToolchainError(f"{path} is {description}; {ACCEPTED}; {advice}")
    if head[:1] == ONNX_START and len(head) > 2 and head[1] <= LARGEST_ONNX_VERSION and head[2] in ONNX_NEXT:
        return ToolchainError(
            f"{path} is an ONNX model; {ACCEPTED}; give the checkpoint that it was exported from, or the file alone as the model: "
            f"--model {path}"
        )
    if head[:1] == b"\x80":
        return ToolchainError(
            f"{path} is a pickle that torch.save did not write, and reading it could run code, so it is not read; "
            f"{ACCEPTED}; save the tensors again with torch.save(state_dict, file)"
        )
    return ToolchainError(_explain_text(path, head) or _explain_bytes(path, head))


def _explain_missing(path: Path, head: bytes) -> ToolchainError | None:
    """Return the error for a file whose content lies elsewhere or nowhere; None for any other."""
    return explain_pointer(path, head) if head else ToolchainError(f"{path} is empty (0 bytes): {GET_AGAIN}")


def explain_pointer(path: Path, head: bytes) -> ToolchainError | None:
    """Return the error for a Git LFS pointer; None for any other file."""
    if not head.startswith(LFS_START):
        return None
    return ToolchainError(
        f"{path} is a Git LFS pointer{_pointer_size(head)}: run git lfs pull in its repository to get the file itself"
    )


def explain_not_onnx(path: Path, head: bytes) -> ToolchainError | None:
    """Return the error for a file that was given as an ONNX model but is something else; None where it may be one.

    Args:
        path: the file.
        head: its first bytes.
    """
    if missing := _explain_missing(path, head):
        return missing
    if head.startswith(ZIP_START):
        return ToolchainError(
            f"{path} is a zip archive, as torch.save and torch.export write them; {ACCEPTED_ONNX}. A checkpoint needs its "
            "model too: --model net.py:build --weights FILE"
        )
    for offset, signature, description, _ in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return ToolchainError(f"{path} is {description}; {ACCEPTED_ONNX}")
    if not head.strip(b"\0"):
        return ToolchainError(_explain_bytes(path, head, ACCEPTED_ONNX))
    text = "" if head[:1] == ONNX_START else _explain_text(path, head, ACCEPTED_ONNX)
    return ToolchainError(text) if text else None


def _pointer_size(head: bytes) -> str:
    """Return " of 13 MB" for the file that a Git LFS pointer stands for; "" where it does not say."""
    sizes = [line.split()[-1] for line in head.decode(errors="replace").splitlines() if line.startswith("size ")]
    if not sizes or not sizes[0].isdecimal():
        return ""
    size = int(sizes[0])
    return next(
        (f" of {size // scale} {unit}" for scale, unit in ((10**6, "MB"), (10**3, "kB")) if size >= scale),
        f" of {size} bytes",
    )


def _explain_text(path: Path, head: bytes, accepted: str = ACCEPTED) -> str:
    """Return the message for a web page or a plain text; "" for anything else."""
    text = _decode_text(head)
    if not text.strip():
        return ""
    start = text.lstrip("\ufeff \t\r\n")[:300].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--", "<body")):
        return (
            f"{path} is a web page (HTML), not the file behind its link: download the file itself "
            "(on GitHub and Hugging Face the link that says raw or resolve), and give that"
        )
    line = next(line.strip() for line in text.splitlines() if line.strip())
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return f"{path} is plain text that starts with {shown!r}; {accepted}; {GET_AGAIN}"


def _decode_text(head: bytes) -> str:
    """Return the first bytes as text; "" where they are none."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    text = head.decode(encoding, errors="replace")
    odd = sum(character == "\ufffd" or (character < " " and character not in string.whitespace) for character in text)
    return text if odd <= len(text) // 50 else ""  # a character may be cut at the end


def _explain_bytes(path: Path, head: bytes, accepted: str = ACCEPTED) -> str:
    if not head.strip(b"\0"):
        return f"{path} starts with zero bytes only, as an interrupted download leaves it: {GET_AGAIN}"
    return f"{path} is no checkpoint: it starts with the bytes {head[:8].hex(' ')}; {accepted}"


def explain_archive(path: Path, names: list[str]) -> ToolchainError:
    """Return the error for a zip archive that torch.save did not write.

    Args:
        path: the archive.
        names: of its files.
    """
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        line = save_line(path, "torch.jit.load({path}, 'cpu').state_dict()")
        return ToolchainError(f"{path} is TorchScript: save its state_dict, and give that file: {line}")
    if {"archive_format", "serialized_exported_program.json", "models/model.json"} & {*inner, *names}:
        line = save_line(path, "torch.export.load({path}).state_dict")
        return ToolchainError(f"{path} is a program of torch.export: save its state_dict, and give that file: {line}")
    if names and all(name.endswith(".npy") for name in names):
        return ToolchainError(f"{path} is a NumPy archive (npz); {ACCEPTED}; give the weights of a torch model")
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return ToolchainError(
        f"{path} is a zip archive without a checkpoint's records (it holds {shown or 'nothing'}): unpack it, and give the "
        "checkpoint in it"
    )


def explain_cut(path: Path, expected_bytes: int | None = None) -> ToolchainError:
    """Return the error for a file whose end is missing.

    Args:
        path: the file.
        expected_bytes: its whole size, where its header says.
    """
    whole = f" of {expected_bytes:,}" if expected_bytes else ""
    return ToolchainError(f"{path} is cut off: it has {path.stat().st_size:,}{whole} bytes; {GET_AGAIN}")


def save_line(path: Path, expression: str) -> str:
    """Return a command that saves a state_dict beside `path`.

    Args:
        path: the file that the user gave.
        expression: Python that gives the state_dict; `{path}` stands for the file.
    """
    target = path.with_name(f"{path.stem}_state_dict.pth")
    state = expression.replace("'", '"').replace("{path}", json.dumps(str(path)))
    return f"python -c {shlex.quote(f'import torch; torch.save({state}, {json.dumps(str(target))})')}"
