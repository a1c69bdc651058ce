"""The C++ runner against run.py: the same pixels, the same answers, the same refusals; and no finding of the sanitizers."""

import dataclasses
import json
import os
import random
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino
import pytest
from conftest import ROOT, Run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from toolchain import pipeline
from toolchain.config.job import make_job
from toolchain.config.packaging import PackageSpec
from toolchain.core import files as records
from toolchain.deploy import cpp_runner
from toolchain.edge import archive
from toolchain.edge import run as runner
from toolchain.measure import latency, peak_throughput

pytestmark = [
    pytest.mark.slow,  # it is built first, twice
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no CMake or C++ compiler here"),
]
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
CMAKE = Path(openvino.__path__[0]) / "cmake"
SEEDS = 200


@pytest.fixture(scope="session")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job for OpenVINO, with the runner's sources."""
    folder = tmp_path_factory.mktemp("cpp")
    shutil.copytree(run.out / "work", folder / "work")
    target = dataclasses.replace(
        run.target, name="openvino", runtime="openvino", precisions=("f32", "int8"), package=PackageSpec(sources=True)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 3)
        patch.setattr(peak_throughput, "ROUNDS", 1)
        assert pipeline.export(make_job(run.recipe, target, run.domain, folder))["shipped"]
    return folder / "tiny" / "openvino" / "bundle"


def build(sources: Path, folder: Path, *more: str) -> Path:
    configure = ["cmake", "-S", str(sources), "-B", str(folder), "-DRUNTIME=openvino", f"-DOpenVINO_DIR={CMAKE}", *more]
    subprocess.run(configure, check=True, capture_output=True)
    made = subprocess.run(["cmake", "--build", str(folder), "-j2"], check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning" not in made.stderr
    return folder / "edge-runner"


@pytest.fixture(scope="session")
def program(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the bundle carries, as its receiver would."""
    folder = tmp_path_factory.mktemp("program")
    with tarfile.open(bundle / cpp_runner.ARCHIVE_NAME) as tar:
        tar.extractall(folder, filter="data")
    return build(folder / "runner", folder / "build")


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(cpp_runner.find_sources(), tmp_path_factory.mktemp("guarded"), "-DSANITIZE=ON")


def ask(program: Path, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def png(path: Path, samples: np.ndarray, depth: int, colour: int, *, interlaced: bool) -> None:
    """A PNG of any depth and colour type; `samples` are [height, width, channels]."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def rows(part: np.ndarray) -> Iterator[bytes]:
        for number, row in enumerate(part.reshape(len(part), -1)):
            bits = "".join(f"{int(value):0{depth}b}" for value in row)
            plain = np.frombuffer(
                int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big"), np.uint8
            )
            step = max(1, part.shape[2] * depth // 8)
            left = np.concatenate([np.zeros(step, np.uint8), plain])[: len(plain)]
            yield bytes([1 if number == 0 else 0]) + (plain - left if number == 0 else plain).astype(np.uint8).tobytes()

    parts = [samples[top::down, left::right] for top, left, down, right in PASSES] if interlaced else [samples]
    body = b"".join(line for part in parts if part.size for line in rows(part))
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    palette = bytes(random.Random(2).randbytes(768)) if colour == 3 else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
        + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
    )  # fmt: skip


def pictures(folder: Path) -> list[Path]:
    """Of every kind and several sizes."""
    draws = np.random.default_rng(4)
    folder.mkdir()
    for height, width in ((32, 32), (45, 21), (117, 203), (1, 3)):
        coarse = draws.integers(0, 256, (max(2, height // 7), max(2, width // 7), 3), dtype=np.uint8)
        colour = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        name = f"{height}x{width}"
        for mode in ("L", "RGB", "RGBA", "P", "LA", "1"):
            colour.convert(mode).save(folder / f"{mode}_{name}.png")
        colour.save(folder / f"colour_{name}.ppm")
        colour.convert("L").save(folder / f"gray_{name}.pgm")
        np.save(folder / f"gray_{name}.npy", np.asarray(colour.convert("L")))
        np.save(folder / f"colour_{name}.npy", np.asarray(colour))
    for interlaced in (False, True):
        for colour, channels, depths in (
            (0, 1, (1, 2, 4, 8, 16)),
            (2, 3, (8, 16)),
            (3, 1, (1, 4, 8)),
            (4, 2, (8, 16)),
            (6, 4, (8, 16)),
        ):
            for depth in depths:
                samples = draws.integers(0, 1 << depth, (37, 19, channels))
                png(folder / f"{colour}_{depth}_{interlaced}.png", samples, depth, colour, interlaced=interlaced)
    return sorted(folder.iterdir())


def coloured(bundle: Path, folder: Path) -> Path:
    """The same model told to look at colours."""
    shutil.copytree(bundle, folder)
    manifest = records.read_json(folder / "manifest.json")
    manifest["preprocess"]["mode"] = "rgb"
    records.write_json(folder / "manifest.json", manifest)
    golden = dict(np.load(folder / "golden.npz"))
    np.savez(folder / "golden.npz", **{**golden, "pixels": np.repeat(golden["pixels"][..., None], 3, axis=-1)})
    archive.write_checksums(folder)
    return folder


@pytest.mark.parametrize("mode", ["gray", "rgb"])
def test_every_kind_of_picture_is_answered_as_run_py_answers_it(
    mode: str, bundle: Path, program: Path, tmp_path: Path
) -> None:
    folder = bundle if mode == "gray" else coloured(bundle, tmp_path / "coloured")
    manifest, files = records.read_json(folder / "manifest.json"), pictures(tmp_path / "pictures")
    model = runner.open_model(folder, manifest, runner.check_files(folder))
    ended = ask(program, folder, "--logits", *files)
    answers = {one["file"]: one for one in map(json.loads, ended.stdout.splitlines())}
    refused = [path for path in files if str(path) not in answers]
    other = "colour" if mode == "gray" else "gray"
    assert [path.name for path in refused] == [p.name for p in files if p.suffix == ".npy" and p.name.startswith(other)]
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == len(refused)
    for path in set(files) - set(refused):
        wanted = model(runner.prepare(path, manifest["preprocess"]))[0]
        found = answers[str(path)]
        assert np.abs(np.array(found["logits"], np.float32) - wanted).max() <= manifest["golden"]["step"] / 1000, path
        assert {key: found[key] for key in ("class", "probability", "best")} == runner.classify(wanted, manifest)


def test_raw_frames_and_finished_inputs_are_answered_too(bundle: Path, program: Path, tmp_path: Path) -> None:
    manifest = records.read_json(bundle / "manifest.json")
    frame = np.random.default_rng(1).integers(0, 256, (48, 40), dtype=np.uint8)
    (tmp_path / "frame.raw").write_bytes(frame.tobytes())
    np.save(tmp_path / "frame.npy", frame)
    np.save(tmp_path / "input.npy", runner.prepare(tmp_path / "frame.npy", manifest["preprocess"]))
    files = [tmp_path / name for name in ("frame.raw", "frame.npy", "input.npy")]
    ended = ask(program, bundle, "--frame", "48x40", "--logits", *files)
    assert ended.returncode == 0, ended.stderr
    assert len({str(json.loads(line)["logits"]) for line in ended.stdout.splitlines()}) == 1
    ended = ask(program, bundle, tmp_path / "frame.raw")
    assert ended.returncode == 2
    assert "1920 bytes; a gray frame of 32x32 (height x width) has 1024; --frame names another size" in ended.stderr


def test_the_self_test_and_the_clock_print_one_line_each(bundle: Path, program: Path) -> None:
    ended = ask(program, bundle, "--self-test", "--time", "0.2")
    verdict, timing = map(json.loads, ended.stdout.splitlines())
    assert (ended.returncode, verdict["verdict"], verdict["golden"]) == (0, "PASS", 16)
    assert verdict["files"] == len(list(bundle.iterdir())) - 1
    assert 0 <= verdict["steps"] <= 2
    assert 0 < timing["p50_ms"] <= timing["p90_ms"]
    assert openvino.__version__.split("-")[0] in timing["runtime"]


def test_other_answers_than_the_golden_ones_are_no_pass(bundle: Path, program: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "other")
    golden = dict(np.load(bundle / "golden.npz"))
    steps = records.read_json(bundle / "manifest.json")["golden"]
    far = steps["step"] * (steps["tolerance_steps"] + 1)
    one = golden["logits"].copy()
    one[3, 1] = np.nan  # neither the first nor the last class
    for changed in (golden["logits"] + np.float32(far), golden["logits"] * np.float32(np.nan), one):
        np.savez(tmp_path / "other/golden.npz", **{**golden, "logits": changed})
        archive.write_checksums(tmp_path / "other")
        ended = ask(program, tmp_path / "other", "--self-test")
        assert ended.returncode == 1
        assert "quantization steps, allowed are" in json.loads(ended.stdout)["reason"]


def test_what_is_asked_wrongly_is_said(bundle: Path, run: Run, program: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "p.jpg")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    png(tmp_path / "tall.png", np.zeros((70_000, 1, 1), np.uint8), 8, 0, interlaced=False)
    turned = Image.Exif()
    turned[274] = 6
    Image.new("L", (8, 8)).save(tmp_path / "turned.png", exif=turned)
    told = PngInfo()
    told.add_text("Raw profile type exif", "\nexif\n 8\n", zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "told.png", pnginfo=told)
    for words, status, message in [
        ((), 2, "name a bundle"),
        ((bundle,), 2, "name a picture, or ask for --self-test or --time"),
        ((bundle, "--frame", "48", "x.raw"), 2, "HEIGHTxWIDTH is wanted"),
        ((bundle, "--time", "soon"), 2, "seconds"),
        ((bundle, "--tyme"), 2, "unknown option --tyme"),
        ((bundle, tmp_path / "p.jpg"), 2, "is none of PNG, PGM and PPM"),
        ((bundle, tmp_path / "cut.png"), 2, "cut.png is cut short"),
        ((bundle, tmp_path / "nothing.png"), 2, "nothing.png is not there"),
        ((bundle, tmp_path / "tall.png"), 2, "70000x1 pixels (height x width); refused"),
        ((bundle, tmp_path / "turned.png"), 2, "is to be turned before it is shown"),
        ((bundle, tmp_path / "told.png"), 2, "may say that it is to be turned"),
        ((tmp_path / "nowhere", "x.png"), 1, "SHA256SUMS is missing or damaged"),
        ((run.bundle, "x.png"), 1, "this program was built for openvino, the bundle is for onnxruntime"),
    ]:
        ended = ask(program, *words)
        assert ended.returncode == status, words
        assert message in ended.stderr
        assert ended.stdout == ""
    np.save(tmp_path / "frame.npy", np.zeros((32, 32), np.uint8))
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([program, bundle, tmp_path / "frame.npy"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    assert ended.returncode == 2
    assert "cannot write what was found" in ended.stderr


def test_cmake_says_what_is_missing(tmp_path: Path) -> None:
    for words, message in [
        ([], "-DRUNTIME=openvino or -DRUNTIME=onnxruntime"),
        (["-DRUNTIME=openvino", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=ON"], "OpenVINO's CMake package was not found"),
        (["-DRUNTIME=onnxruntime", f"-DONNXRUNTIME_ROOT={tmp_path}"], "ONNX Runtime was not found"),
    ]:
        shutil.rmtree(tmp_path / "build", ignore_errors=True)
        command = ["cmake", "-S", str(ROOT / "runner"), "-B", str(tmp_path / "build"), *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode != 0
        assert message in " ".join(ended.stderr.split())


@pytest.mark.skipif("ONNXRUNTIME_ROOT" not in os.environ, reason="ONNXRUNTIME_ROOT names no release with headers")
def test_onnx_runtime_answers_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["-DRUNTIME=onnxruntime", f"-DONNXRUNTIME_ROOT={os.environ['ONNXRUNTIME_ROOT']}"]
    program, files = build(ROOT / "runner", tmp_path / "build", *more), pictures(tmp_path / "pictures")
    manifest = records.read_json(run.bundle / "manifest.json")
    model = runner.open_model(run.bundle, manifest, runner.check_files(run.bundle))
    (home := tmp_path / "home").mkdir()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)  # what tests that ran before have set
    for line in ask(program, run.bundle, "--logits", *files, HOME=str(home)).stdout.splitlines():
        found = json.loads(line)
        wanted = model(runner.prepare(found["file"], manifest["preprocess"]))[0]
        assert np.abs(np.array(found["logits"], np.float32) - wanted).max() <= manifest["golden"]["step"]
    assert not list(home.iterdir())  # nor a number under which it would tell its maker of it


def clean(ended: subprocess.CompletedProcess[str]) -> bool:
    """Ended of its own accord, with nothing found."""
    return ended.returncode in {0, 1, 2} and "Sanitizer" not in ended.stderr and "runtime error" not in ended.stderr


def test_corrupted_bundles_are_refused_with_nothing_found_by_the_sanitizers(
    bundle: Path, guarded: Path, tmp_path: Path
) -> None:
    ended = ask(guarded, bundle, "--self-test", *pictures(tmp_path / "pictures"), TBB_ENABLE_SANITIZERS="1")
    assert clean(ended), ended.stderr  # all that is right runs clean, too
    assert '"PASS"' in ended.stdout
    chance, names = random.Random(6), sorted(path.name for path in bundle.iterdir())
    for number in range(SEEDS):
        shutil.copytree(bundle, broken := tmp_path / "broken", dirs_exist_ok=True)
        path = broken / chance.choice(names)
        body = bytearray(path.read_bytes())
        if number % 4 == 0:
            del body[chance.randrange(len(body)) :]
        else:
            for _ in range(chance.randint(1, 20)):
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        if bytes(body) == path.read_bytes():
            body.append(0)
        path.write_bytes(body)
        ended = ask(guarded, broken, "--self-test", TBB_ENABLE_SANITIZERS="1")
        assert clean(ended), (path.name, ended.stderr)
        assert ended.returncode == 1, path.name
        assert '"FAIL"' in ended.stdout


def test_parsers_stand_what_somebody_sealed_on_purpose(bundle: Path, guarded: Path, tmp_path: Path) -> None:
    """Hashes keep accidents out; whoever can write SHA256SUMS gets as far as the parsers."""
    shutil.copytree(bundle, broken := tmp_path / "broken")
    chance = random.Random(7)
    for _ in range(SEEDS):
        name = chance.choice(["manifest.json", "golden.npz"])
        body = bytearray((bundle / name).read_bytes())
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(body))
            body[at : at + chance.choice([0, 1, 1, 1, 9])] = chance.randbytes(1)
        (broken / name).write_bytes(body)
        archive.write_checksums(broken)
        ended = ask(guarded, broken, "--self-test", TBB_ENABLE_SANITIZERS="1")
        assert clean(ended), ended.stderr
        shutil.copy(bundle / name, broken / name)


def test_damaged_pictures_are_refused_one_by_one(bundle: Path, guarded: Path, tmp_path: Path) -> None:
    chance, whole = random.Random(8), pictures(tmp_path / "pictures")
    (damaged := tmp_path / "damaged").mkdir()
    for number in range(2 * SEEDS):
        path = chance.choice(whole)
        body = bytearray(path.read_bytes())
        for _ in range(chance.randint(1, 8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        if path.suffix == ".png" and number % 2:
            body = checked(body)  # so that more than its checksums is tried
        (damaged / f"{number}{path.suffix}").write_bytes(body[: chance.choice([None, None, len(body) // 2])])
    files = sorted(damaged.iterdir())
    ended = ask(guarded, bundle, *files, TBB_ENABLE_SANITIZERS="1")
    assert clean(ended), ended.stderr
    assert len(ended.stdout.splitlines()) + len(ended.stderr.splitlines()) == len(files)


def checked(body: bytearray) -> bytearray:
    """A damaged PNG with checksums that fit, as far as its chunks can be followed."""
    at = 8
    while at + 12 <= len(body):
        length = int.from_bytes(body[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(body):
            break
        body[end : end + 4] = zlib.crc32(body[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return body


def test_sources_are_packed_the_same_every_time(tmp_path: Path) -> None:
    one, two = (cpp_runner.pack(tmp_path / name).read_bytes() for name in ("one.tar", "two.tar"))
    assert one == two
