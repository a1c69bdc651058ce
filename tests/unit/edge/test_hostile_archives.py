"""Archives and models made to do harm, by a generator with a seed: all refused, nothing written outside, nothing followed."""

import io
import json
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from toolchain.core.errors import ToolchainError
from toolchain.deploy import verify_bundle
from toolchain.edge import archive
from toolchain.measure import external_weights, model_files

Bodies = dict[str, bytes]


def sums(bodies: Bodies) -> bytes:
    import hashlib

    return "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in sorted(bodies.items())).encode()


def honest(order: random.Random) -> Bodies:
    bodies = {name: order.randbytes(order.randint(1, 3000)) for name in ("golden.npz", "model.onnx", "labels.txt")}
    bodies["manifest.json"] = json.dumps({"schema": 1}).encode()
    return bodies


def test_a_manifest_of_nothing_but_brackets_is_one_message(tmp_path: Path) -> None:
    bodies = {**honest(random.Random(0)), "manifest.json": b"[" * 200_000}
    parts = [member(f"bundle/{name}", body) for name, body in {**bodies, "SHA256SUMS": sums(bodies)}.items()]
    (tmp_path / "bundle.tar").write_bytes(b"".join(parts) + b"\0" * 1024)
    with pytest.raises(ToolchainError, match="not valid JSON"):
        verify_bundle.check(tmp_path / "bundle.tar", None, 0)


def member(name: str, body: bytes = b"x", kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(body) if kind == tarfile.REGTYPE else 0
    for field, value in fields.items():
        setattr(info, field, value)
    form = tarfile.GNU_FORMAT if info.size < 0 else tarfile.PAX_FORMAT
    return info.tobuf(form) + body + b"\0" * (-len(body) % 512)


def away(order: random.Random) -> str:
    up = "../" * order.randint(1, 6)
    return order.choice([
        f"bundle/{up}etc/cron.d/x", f"{up}x", f"/tmp/{order.randint(0, 9)}/x", "bundle/./../x", "bundle//x", "bundle/a/../../x",
        "bundle/..", "bundle/.", "bundle/", "x", "bundle\\x", "bundle/a\\..\\x", "Bundle/x", f"bundle/sub/{up}x", "./bundle/x",
        "bundle/\udcff/x", "bundle/" + "a/" * 40 + "x", "C:/bundle/x",
    ])  # fmt: skip


HARM: dict[str, Callable[[random.Random], bytes]] = {
    "path": lambda order: member(away(order)),
    "symlink": lambda order: member("bundle/link", kind=tarfile.SYMTYPE, linkname=order.choice(["/etc/passwd", "..", "model.onnx"])),
    "hardlink": lambda order: member("bundle/hard", kind=tarfile.LNKTYPE, linkname=order.choice(["bundle/model.onnx", "/etc/passwd"])),
    "device": lambda order: member("bundle/node", kind=order.choice([tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])),
    "folder": lambda order: member("bundle/folder", kind=tarfile.DIRTYPE),
    "twice": lambda order: member(f"bundle/{order.choice(['model.onnx', 'manifest.json', 'SHA256SUMS'])}"),
    "bomb": lambda order: member("bundle/big", b"x", size=order.randint(1 << 32, 1 << 40)),
    "sparse": lambda order: member("bundle/holes", kind=tarfile.GNUTYPE_SPARSE, size=0),
    "many": lambda order: b"".join(member(f"bundle/{number}") for number in range(archive.MAX_FILES + 1)),
    "long name": lambda order: member("bundle/" + "n" * order.randint(120, 5000)),
    "unknown kind": lambda order: member("bundle/odd", kind=b"Z"),
    "pax path": lambda order: member("bundle/x", pax_headers={"path": "/tmp/evil"}),
    "sparse numbers": lambda order: member("bundle/x", pax_headers={f"GNU.sparse.{order.choice(['size', 'realsize', 'map'])}": "a,b"}),
    "names of names": lambda order: member("bundle/x", kind=tarfile.GNUTYPE_LONGNAME) * 3000,
    "less than nothing": lambda order: member("bundle/x", b"", size=-order.randint(1, 1 << 20)),
    "unvouched model": lambda order: member("bundle/model.bin", order.randbytes(100)),
}  # fmt: skip


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", HARM)
@pytest.mark.parametrize("seed", range(12))
def test_a_hostile_member_is_refused_wherever_it_stands(kind: str, seed: int, tmp_path: Path) -> None:
    order = random.Random(f"{kind} {seed}")
    bodies = honest(order)
    parts = [member(f"bundle/{name}", body) for name, body in {**bodies, "SHA256SUMS": sums(bodies)}.items()]
    parts.insert(order.randint(0, len(parts)), HARM[kind](order))
    path = tmp_path / "in" / "bundle.tar"
    path.parent.mkdir()
    path.write_bytes(b"".join(parts) + b"\0" * 1024)
    before = everything(tmp_path)
    for check in (
        lambda: archive.unpack(path, tmp_path / "out" / "b"),
        lambda: model_files.open_model(path, tmp_path / "scratch"),
        lambda: verify_bundle.check(path, None, 0),
    ):
        with pytest.raises(ToolchainError):
            check()
    left = {one for one in everything(tmp_path) - before if one.parts[0] not in {"out", "scratch"}}
    assert not left
    assert not [one for one in (tmp_path / "out").rglob("*") if one.is_file()]


def test_headers_before_a_member_and_sizes_beyond_the_archive_are_refused_as_such(tmp_path: Path) -> None:
    bodies = honest(random.Random(0))
    whole = b"".join(member(f"bundle/{name}", body) for name, body in {**bodies, "SHA256SUMS": sums(bodies)}.items())
    path = tmp_path / "bundle.tar"
    path.write_bytes(member("bundle/x", pax_headers={"comment": "harmless"}) + whole + b"\0" * 1024)
    with pytest.raises(ToolchainError, match="'bundle/x' does not belong in one"):
        archive.unpack(path, tmp_path / "out" / "b")
    path.write_bytes(whole + member("bundle/x", size=1 << 30) + b"\0" * 1024)  # less than the most, more than there is
    with pytest.raises(ToolchainError, match="is truncated: bundle/x is incomplete"):
        archive.unpack(path, tmp_path / "out" / "b")


@pytest.mark.parametrize("seed", range(40))
def test_noise_in_an_archive_never_gets_through(seed: int, tmp_path: Path) -> None:
    order = random.Random(seed)
    bodies = honest(order)
    whole = b"".join(member(f"bundle/{name}", body) for name, body in {**bodies, "SHA256SUMS": sums(bodies)}.items())
    noisy = bytearray(whole + b"\0" * 1024)
    for _ in range(order.randint(1, 40)):
        noisy[order.randrange(len(noisy))] ^= 1 << order.randrange(8)
    path = tmp_path / "bundle.tar"
    path.write_bytes(noisy[: order.randint(1, len(noisy))] if seed % 3 == 0 else noisy)
    try:
        found = archive.unpack(path, tmp_path / "out" / "b")
    except ToolchainError:
        return
    # what is let through is what was sealed: the noise fell into padding or into fields that decide nothing
    assert {name: (found / name).read_bytes() for name in archive.list_checksummed_files(found)} == bodies


@pytest.mark.parametrize(
    "wrap", [zlib.compress, lambda body: b"\x1f\x8b" + body, lambda body: b"PK\3\4" + body, lambda _: b""]
)
def test_other_formats_are_no_archives(wrap: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    path.write_bytes(wrap(member("bundle/model.onnx") + b"\0" * 1024))
    with pytest.raises(ToolchainError):
        archive.unpack(path, tmp_path / "out" / "b")


# --- models -------------------------------------------------------------------------------------------------


def model(path: Path, location: str | None, where: str = "initializer") -> Path:
    """One convolution whose weights lie at `location`; None: inside."""
    kernel = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    if location is not None:
        external_data = [("location", location), ("length", str(len(kernel.raw_data)))]
        kernel.ClearField("raw_data")
        kernel.data_location = TensorProto.EXTERNAL
        for key, value in external_data:
            kernel.external_data.add(key=key, value=value)
    nodes, kept, sparse = [helper.make_node("Conv", ["input", "w"], ["logits"], pads=[1, 1, 1, 1])], [kernel], []
    if where == "constant":
        nodes, kept = [helper.make_node("Constant", [], ["w"], value=kernel), *nodes], []
    elif where == "sparse":
        indices = onnx.numpy_helper.from_array(np.arange(108, dtype=np.int64), "i")
        sparse, kept = [helper.make_sparse_tensor(kernel, indices, [4, 3, 3, 3])], []
    elif where == "branch":
        inner = helper.make_graph(
            nodes, "inner", [], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 4, 8, 8))], kept
        )
        kept = [onnx.numpy_helper.from_array(np.array(True), "yes")]
        nodes = [helper.make_node("If", ["yes"], ["logits"], then_branch=inner, else_branch=inner)]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("input", (1, 3, 8, 8)), ("logits", (1, 4, 8, 8)))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], kept, sparse_initializer=sparse)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "constant", "sparse", "branch"])
@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "sub/weights.bin", "..", ".", "", "a\\b", "missing.bin", "w\0.bin"]
)
def test_weights_elsewhere_are_not_followed(location: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(struct.pack("108f", *([1.0] * 108)))
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "weights.bin").write_bytes(b"\0" * 432)
    path = model(home / "m.onnx", location, where)
    with pytest.raises(ToolchainError, match="refused|not beside it"):
        model_files.open_model(path, tmp_path / "scratch")


def test_links_beside_a_model_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 432)
    home = tmp_path / "home"
    home.mkdir()
    path = model(home / "m.onnx", "w.bin")
    for link in (lambda at: at.symlink_to(secret), lambda at: os.link(secret, at), lambda at: os.mkfifo(at)):
        link(home / "w.bin")
        with pytest.raises(ToolchainError, match="is a link or not a regular file; refused"):
            model_files.open_model(path, tmp_path / "scratch")
        (home / "w.bin").unlink()


def test_weights_beside_a_model_belong_to_it_by_their_hash(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", "w.bin")
    (tmp_path / "w.bin").write_bytes(struct.pack("108f", *([1.0] * 108)))
    found = model_files.open_model(path, tmp_path / "scratch")
    assert [file.name for file in found.artefact.files] == ["m.onnx", "w.bin"]
    (tmp_path / "w.bin").write_bytes(struct.pack("108f", *([2.0] * 108)))
    assert model_files.open_model(path, tmp_path / "scratch").artefact.sha256 != found.artefact.sha256
    assert external_weights.list_external_weights(model(tmp_path / "whole.onnx", None)) == ()


def test_what_is_no_onnx_is_said_before_a_runtime_sees_it(tmp_path: Path) -> None:
    for body in (b"\x80\x04\x95pickle", b"PK\3\4", io.BytesIO(os.urandom(400)).getvalue()):
        (tmp_path / "m.onnx").write_bytes(body)
        with pytest.raises(ToolchainError, match="not a readable ONNX file"):
            model_files.open_model(tmp_path / "m.onnx", tmp_path / "scratch")
