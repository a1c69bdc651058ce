"""Archives: a bundle comes through, and nothing else does; nothing is ever written outside of the folder."""

import io
import tarfile
from pathlib import Path

import pytest

from toolchain.core.errors import ToolchainError
from toolchain.core.files import sha256_file
from toolchain.edge import archive as archives

BODIES = {"manifest.json": b'{"schema": 1}', "golden.npz": b"golden", "model.onnx": b"model"}


def bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, body in BODIES.items():
        (folder / name).write_bytes(body)
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in sorted(BODIES))
    (folder / "SHA256SUMS").write_text(sums)
    return folder


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", body: bytes = b"x"
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(body) if kind == tarfile.REGTYPE else 0
    return info, body


def packed(path: Path, *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    folder = bundle(path.parent / "made")
    with tarfile.open(path, "w") as tar:
        for info, body in (*(entry(f"bundle/{f.name}", body=f.read_bytes()) for f in sorted(folder.iterdir())), *more):
            tar.addfile(info, io.BytesIO(body))
    return path


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_bundle_comes_out_as_it_went_in(tmp_path: Path) -> None:
    found = archives.unpack(packed(tmp_path / "b.tar"), tmp_path / "out" / "b")
    assert {file.name: file.read_bytes() for file in found.iterdir() if file.name in BODIES} == BODIES
    assert archives.list_checksummed_files(found) == set(BODIES)
    assert archives.unpack(tmp_path / "b.tar", tmp_path / "out" / "b") == found  # it stands there already


@pytest.mark.parametrize(
    "odd",
    [
        entry("bundle/../../escaped"),
        entry("../escaped"),
        entry("/tmp/escaped-absolutely"),
        entry("bundle/.."),
        entry("bundle/"),
        entry("bundle/sub/file"),
        entry("bundle/a\\b"),
        entry("bundle/link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("bundle/hard", tarfile.LNKTYPE, "bundle/model.onnx"),
        entry("bundle/device", tarfile.CHRTYPE),
        entry("bundle/fifo", tarfile.FIFOTYPE),
        entry("bundle/folder", tarfile.DIRTYPE),
        entry("bundle/model.onnx"),  # twice
    ],
    ids=lambda odd: odd[0].name,
)
def test_what_does_not_belong_in_a_bundle_is_refused(odd: tuple[tarfile.TarInfo, bytes], tmp_path: Path) -> None:
    archive = packed(tmp_path / "b.tar", odd)
    before = everything(tmp_path)
    with pytest.raises(ToolchainError, match="does not belong in one"):
        archives.unpack(archive, tmp_path / "out" / "b")
    assert everything(tmp_path) - before <= {Path("out")}
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_of_too_many_or_too_large_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = packed(tmp_path / "b.tar", *(entry(f"bundle/{i}") for i in range(archives.MAX_FILES)))
    with pytest.raises(ToolchainError, match="larger than any bundle"):
        archives.unpack(many, tmp_path / "out" / "b")
    monkeypatch.setattr(archives, "MAX_BYTES", 10)
    with pytest.raises(ToolchainError, match="larger than any bundle"):
        archives.unpack(many, tmp_path / "out" / "b")


@pytest.mark.parametrize("keep", [0, 100, 700, 2000])
def test_what_is_no_archive_or_only_the_beginning_of_one_is_refused(keep: int, tmp_path: Path) -> None:
    archive = packed(tmp_path / "b.tar")
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(ToolchainError):
        archives.unpack(archive, tmp_path / "out" / "b")


def test_a_file_that_changed_after_it_was_unpacked_is_named(tmp_path: Path) -> None:
    found = archives.unpack(packed(tmp_path / "b.tar"), tmp_path / "out" / "b")
    (found / "model.onnx").write_bytes(b"Model")
    with pytest.raises(ToolchainError, match=r"model\.onnx is missing or was changed"):
        archives.unpack(tmp_path / "b.tar", tmp_path / "out" / "b")


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    (folder / "manifest.json").write_text('{"schema": 3}')
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in BODIES)
    (folder / "SHA256SUMS").write_text(sums)
    with pytest.raises(ToolchainError, match="manifest schema 3; this version reads 1 to 2"):
        archives.read_verified_manifest(folder)
