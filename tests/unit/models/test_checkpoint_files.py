"""Checkpoints are read by their content; a file that is something else is called what it is, with what to do next."""

import argparse
import collections
import gzip
import io
import pathlib
import pickle  # noqa: TID251  only to write what is refused
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from toolchain.core.errors import ToolchainError
from toolchain.models import checkpoint_files

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 13948571\n"


class Net(nn.Module):
    """A user's own model, saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)


class Settings:
    """A class of a training script, of which an instance lies in its checkpoint."""


def torch_bytes(content: object, **settings: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def zip_bytes(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def script_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 4, 1)), buffer)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(ToolchainError) as error:
        checkpoint_files.read_state_dicts(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "w"])
@pytest.mark.parametrize(
    "body",
    [save(STATE), torch_bytes(STATE), torch_bytes(STATE, _use_new_zipfile_serialization=False)],
    ids=["safetensors", "torch", "torch before 1.6"],
)
def test_a_checkpoint_is_read_whatever_its_suffix(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    state_dicts = checkpoint_files.read_state_dicts(tmp_path / name)
    assert list(state_dicts) == [""]
    torch.testing.assert_close(state_dicts[""], STATE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (LFS_POINTER.encode(), "is a Git LFS pointer of 13 MB: run git lfs pull"),
        (LFS_POINTER.replace("13948571", "2500").encode(), "is a Git LFS pointer of 2 kB: run"),
        (LFS_POINTER.replace("size 13948571", "").encode(), "is a Git LFS pointer: run"),
        (b"", "is empty (0 bytes): copy or download it again"),
        (b"404: Not Found", "is plain text that starts with '404: Not Found'; accepted: a safetensors file"),
        ("404: nicht gefunden für Sie".encode("utf-16"), "is plain text that starts with '404: nicht gefunden"),
        (b"\n<!DOCTYPE html>\n<html>", "is a web page (HTML), not the file behind its link: download the file itself"),
        (b'<?xml version="1.0"?><Error>', "is a web page (HTML)"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x062.13.0", "is an ONNX model; accepted"),
        (b"\x08\x0a\x3a\x9a\x01", "give the checkpoint that it was exported from"),
        (gzip.compress(b"weights"), "is compressed with gzip; accepted"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file, as Keras writes it"),
        (b"\x1c\0\0\0TFL3" + bytes(90), "is a TensorFlow Lite model"),
        (bytes(9000), "starts with zero bytes only, as an interrupted download leaves it"),
        (bytes(range(0xC0, 0x100)), "is no checkpoint: it starts with the bytes c0 c1 c2 c3 c4 c5 c6 c7; accepted"),
        (pickle.dumps(STATE, protocol=2), "is a pickle that torch.save did not write"),
        (pickle.dumps(STATE, protocol=4), "is a pickle that torch.save did not write"),
        (zip_bytes(**{"model/best.pth": "x", "readme": ""}), "(it holds model/best.pth, readme): unpack it"),
        (zip_bytes(**{"weight.npy": "x"}), "is a NumPy archive (npz)"),
        (zip_bytes(**{"net/archive_format": "pt2"}), "is a program of torch.export: save its state_dict"),
        (torch_bytes(STATE)[:-90], "is cut off: it has"),
        (torch_bytes(STATE, _use_new_zipfile_serialization=False)[:-5], "is cut off: it has"),
        (torch_bytes(STATE, _use_new_zipfile_serialization=False)[:150], "is cut off: it has 150 bytes"),
        (save(STATE)[:-5], f"is cut off: it has {len(save(STATE)) - 5} of {len(save(STATE))} bytes; copy or"),
        (save(STATE)[:30], "is cut off: it has 30 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",  # bytes of an archive hold the time of day
)  # fmt: skip
def test_any_other_file_is_called_what_it_is(tmp_path: Path, body: bytes, message: str) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(body)
        assert message in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "body",
    [
        len(b'{"a": 3}').to_bytes(8, "little") + b'{"a": 3}',
        len(b'{"a": {}}').to_bytes(8, "little") + b'{"a": {}}',
        len(b"{wrong}}}").to_bytes(8, "little") + b"{wrong}}}",
        save(STATE) + b"more",
    ],
)
def test_a_damaged_header_is_no_traceback(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(body)
    assert "is not a readable checkpoint" in refusal(tmp_path / "w.safetensors")


def test_the_line_for_torchscript_makes_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "deployed model.pt").write_bytes(script_bytes())
    message = refusal(tmp_path / "deployed model.pt")
    assert "is TorchScript: save its state_dict, and give that file: python -c " in message
    run_line(message)
    state_dicts = checkpoint_files.read_state_dicts(tmp_path / "deployed model_state_dict.pth")
    assert set(state_dicts[""]) == {"weight", "bias"}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [lambda net: net, lambda net: {"args": Settings(), "epoch": 3, "model": net, "ema": None}],
    ids=["alone", "in a training checkpoint"],
)
def test_the_line_for_a_whole_model_makes_a_checkpoint(
    tmp_path: Path, wrap: Callable[[nn.Module], object], legacy: bool
) -> None:
    torch.save(wrap(Net()), tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    message = refusal(tmp_path / "net.pth")
    assert (
        f"holds a whole model ({Net.__module__}.Net) and could run code when it is read, so it is not read" in message
    )
    run_line(message)
    state_dicts = checkpoint_files.read_state_dicts(tmp_path / "net_state_dict.pth")
    assert set(state_dicts[""]) == {"conv.weight", "conv.bias"}


def test_a_whole_model_of_torchs_own_layers_is_named(tmp_path: Path) -> None:
    torch.save({"net": nn.Sequential(nn.Conv2d(3, 4, 1))}, tmp_path / "net.pth")
    message = refusal(tmp_path / "net.pth")
    assert "holds a whole model (torch.nn.modules.container.Sequential)" in message
    assert 'weights_only=False)["net"].state_dict()' in message


def run_line(message: str) -> None:
    """Run the `python -c` line at the end of a message, as a shell would take it apart."""
    python, option, code = shlex.split(message[message.index("python -c") :])
    assert (python, option) == ("python", "-c")
    exec(code)


def test_what_could_run_code_is_named_and_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("this ran",)

    torch.save({"model": STATE, "extra": Evil()}, tmp_path / "w.pth")
    assert "holds more than tensors (builtins.print) and could run code" in refusal(tmp_path / "w.pth")
    assert "this ran" not in capfd.readouterr().out
    torch.save({"model": STATE, "losses": collections.defaultdict(list, a=[1.0])}, tmp_path / "w.pth")
    assert "more than tensors (collections.defaultdict, builtins.list)" in refusal(tmp_path / "w.pth")


def test_settings_and_metrics_of_training_scripts_are_read(tmp_path: Path) -> None:
    settings = argparse.Namespace(rate=0.1, out=pathlib.Path("runs"))
    metrics = {"best": np.float64(0.7), "last": np.float32(0.6)}
    torch.save({"model": STATE, "args": settings, "metrics": metrics}, tmp_path / "w.pth")
    assert list(checkpoint_files.read_state_dicts(tmp_path / "w.pth")) == ["model"]


def test_every_state_dict_is_listed_with_the_likeliest_first(tmp_path: Path) -> None:
    extended = STATE | {"head": torch.ones(1)}
    content = {"epoch": 3, "head": {"weight": torch.ones(1)}, "ema": {"shadow": extended}, "model": STATE, "old": STATE}
    torch.save(content, tmp_path / "w.pth")
    assert list(checkpoint_files.read_state_dicts(tmp_path / "w.pth")) == ["model", "old", "head", "ema.shadow"]
    torch.save({"step": torch.ones(1), "model": STATE}, tmp_path / "w.pth")
    assert list(checkpoint_files.read_state_dicts(tmp_path / "w.pth")) == ["", "model"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_short_floating_point_is_widened_to_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in STATE.items()}, tmp_path / "w.safetensors")
    torch.testing.assert_close(checkpoint_files.read_state_dicts(tmp_path / "w.safetensors")[""], STATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor; expected is a state_dict, tensors by name"),
        ([STATE], "holds a list; expected is a state_dict"),
        ({"epoch": 3, "loss": 0.2}, "holds no tensors (its keys: epoch, loss); expected is a state_dict"),
        ({}, "holds no tensors (its keys: none)"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert message in refusal(tmp_path / "w.pth")
