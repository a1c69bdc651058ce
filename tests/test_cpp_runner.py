"""The C++ runner against run.py: the same inputs bit for bit, the same predictions, one message for what is refused; and no
finding of the sanitizers."""

import dataclasses
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from toolchain.edge import archive, pixels
from toolchain.edge import run as runner
from toolchain.measure import latency, peak_throughput

pytestmark = [
    pytest.mark.slow,  # it is built first, twice
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no CMake or C++ compiler here"),
]
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
CMAKE = Path(openvino.__path__[0]) / "cmake"
SEEDS = 200
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.3, 0.2]  # those of print-input
ARM64 = [
    "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
]  # fmt: skip


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


def build(sources: Path, folder: Path, *options: str) -> Path:
    configure = [
        "cmake",
        "-S",
        str(sources),
        "-B",
        str(folder),
        "-DRUNTIME=openvino",
        f"-DOpenVINO_DIR={CMAKE}",
        *options,
    ]
    subprocess.run(configure, check=True, capture_output=True)
    built = subprocess.run(["cmake", "--build", str(folder), "-j2"], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stderr
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
    """With the sanitizers; print-input lies beside it."""
    return build(ROOT / "runner", tmp_path_factory.mktemp("guarded"), "-DSANITIZE=ON", "-DEDGE_RUNNER_TESTS=ON")


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


def jpegs(image: Image.Image, folder: Path, name: str) -> None:
    """Gray and colour, every subsampling that Pillow writes, baseline and progressive, with and without restarts."""
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            path = folder / f"{subsampling.replace(':', '')}_{progressive}_{name}.jpg"
            image.save(path, subsampling=subsampling, progressive=progressive, quality=90)
    image.convert("L").save(folder / f"L_{name}.jpg")
    image.convert("L").save(folder / f"L_progressive_{name}.jpg", progressive=True)
    image.save(folder / f"restarts_{name}.jpg", restart_marker_blocks=2, quality=30)
    image.save(folder / f"rgb_{name}.jpg", keep_rgb=True)  # not YCbCr


def turned(image: Image.Image, folder: Path) -> None:
    """Every orientation, in every way that Pillow reads it."""
    for orientation in range(10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[271], exif[274] = "a maker of a long name", orientation
        xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
        as_text, as_profile = PngInfo(), PngInfo()
        as_text.add_itxt("XML:com.adobe.xmp", xmp, zip=orientation % 2 == 0)
        digits = exif.tobytes().hex()
        as_profile.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{digits}\n", zip=True)
        image.save(folder / f"exif_{orientation}.jpg", exif=exif)
        image.save(folder / f"exif_{orientation}.png", exif=exif)
        image.save(folder / f"xmp_{orientation}.jpg", xmp=xmp.encode())
        image.save(folder / f"xmp_{orientation}.png", pnginfo=as_text)
        image.save(folder / f"profile_{orientation}.png", pnginfo=as_profile)
    exif[274] = 6
    image.save(folder / "exif_before_xmp.jpg", exif=exif, xmp=xmp.replace('"9"', '"8"').encode())


def images(folder: Path) -> list[Path]:
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
        jpegs(colour, folder, name)
        if name == "45x21":
            turned(colour, folder)
    for interlaced in (False, True):
        for colour_type, channels, depths in (
            (0, 1, (1, 2, 4, 8, 16)),
            (2, 3, (8, 16)),
            (3, 1, (1, 4, 8)),
            (4, 2, (8, 16)),
            (6, 4, (8, 16)),
        ):
            for depth in depths:
                samples = draws.integers(0, 1 << depth, (37, 19, channels))
                png(
                    folder / f"{colour_type}_{depth}_{interlaced}.png",
                    samples,
                    depth,
                    colour_type,
                    interlaced=interlaced,
                )
    return sorted(folder.iterdir())


def make_coloured(bundle: Path, folder: Path) -> Path:
    """The same model told to look at colours."""
    shutil.copytree(bundle, folder)
    manifest = records.read_json(folder / "manifest.json")
    manifest["preprocess"]["mode"] = "rgb"
    records.write_json(folder / "manifest.json", manifest)
    golden = dict(np.load(folder / "golden.npz"))
    np.savez(folder / "golden.npz", **{**golden, "pixels": np.repeat(golden["pixels"][..., None], 3, axis=-1)})
    archive.write_checksums(folder)
    return folder


def decoded_inputs(printer: list[str], mode: str, path: Path, size: tuple[int, ...], *settings: str) -> bytes:
    ended = subprocess.run([*printer, mode, *map(str, size), *settings, str(path)], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check_inputs(printer: list[str], files: list[Path]) -> None:
    """In their own size, so that no resizing hides a difference, and in another."""
    for path in [path for path in files if path.suffix != ".npy"]:  # those know one mode only
        for mode in ("gray", "rgb"):
            for size in {runner.read_image(path, mode).shape[:2], (20, 30)}:
                wanted = runner.prepare(path, {"mode": mode, "image_size": size, "mean": MEAN, "std": STD})
                assert decoded_inputs(printer, mode, path, size) == wanted.tobytes(), (path, mode, size)


def test_inputs_equal_those_of_run_py_bit_for_bit(guarded: Path, tmp_path: Path) -> None:
    check_inputs([str(guarded.parent / "print-input")], images(tmp_path / "images"))


WAYS: dict[tuple[str, ...], dict[str, Any]] = {
    ("order=bgr",): {"order": "bgr"},
    ("fit=crop", "crop_share=0.875"): {"fit": "crop", "crop_share": 0.875},
    ("fit=letterbox", "fill=7,7,7", "order=bgr"): {"fit": "letterbox", "fill": [7, 7, 7], "order": "bgr"},
    ("interpolation=bicubic",): {"interpolation": "bicubic"},
    ("interpolation=area",): {"interpolation": "area"},
    ("antialias=no",): {"antialias": False},
    ("fit=crop", "crop_share=0.9", "antialias=no", "interpolation=bicubic"): {
        "fit": "crop", "crop_share": 0.9, "antialias": False, "interpolation": "bicubic"
    },
}  # fmt: skip


@pytest.mark.parametrize("words", WAYS, ids="-".join)
def test_pixels_as_other_weights_expect_them_are_the_same_too(
    words: tuple[str, ...], guarded: Path, tmp_path: Path
) -> None:
    printer = [str(guarded.parent / "print-input")]
    for path in [path for path in images(tmp_path / "images")[::5] if path.suffix != ".npy"]:
        for mode in ("gray", "rgb"):
            for size in ((20, 30), (40, 40)):
                preprocess = {"mode": mode, "image_size": size, "mean": MEAN, "std": STD, **WAYS[words]}
                wanted = runner.prepare(path, preprocess).tobytes()
                assert decoded_inputs(printer, mode, path, size, *words) == wanted, (path, mode, size)


def test_a_bundle_says_what_its_weights_expect(bundle: Path, program: Path, tmp_path: Path) -> None:
    files = [path for path in images(tmp_path / "images") if not path.name.startswith("colour_")][::7]
    shutil.copytree(bundle, other := tmp_path / "other")
    shutil.copyfile(pixels.__file__, other / "pixels.py")
    manifest = records.read_json(bundle / "manifest.json")
    assert (manifest["schema"], (bundle / "pixels.py").exists()) == (1, False)

    def say(schema: int, **settings: Any) -> None:
        changed = {**manifest, "schema": schema, "preprocess": {**manifest["preprocess"], **settings}}
        records.write_json(other / "manifest.json", changed)
        archive.write_checksums(other)

    say(2, fit="letterbox", fill=[9, 9, 9], interpolation="bicubic")
    own = subprocess.run([sys.executable, other / "run.py", *files], capture_output=True, text=True, check=True)
    ended = ask(program, other, *files)
    assert (ended.returncode, ended.stdout) == (0, own.stdout)
    assert ended.stdout != ask(program, bundle, *files).stdout
    for schema, settings, said in (
        (3, {}, "has schema 3"),
        (2, {"gamma": 2.2}, "gamma is not known to this program; build a newer one"),
        (2, {"fit": "tile"}, "fit tile is not known to this program"),
        (2, {"interpolation": "lanczos"}, "interpolation lanczos is not known"),
        (2, {"fit": "crop", "crop_share": 0.0}, "crop_share is not from"),
        (2, {"fit": "letterbox", "fill": [9, 9, 256]}, "fill is above 255"),
    ):
        say(schema, **settings)
        refused = ask(program, other, files[0])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
    (other / "pixels.py").unlink()
    say(2, fit="letterbox")
    refused = subprocess.run([sys.executable, other / "run.py", files[0]], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pixels.py, which this model needs, is not listed in SHA256SUMS" in refused.stderr


def test_folders_standard_input_and_help(bundle: Path, program: Path, tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", "b/c/3.png", "b/.hidden.png", ".d/4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(tmp_path / "in" / name)
    (tmp_path / "empty").mkdir()
    names = f"{tmp_path}/in/b\r\n\n{tmp_path}/in/a.png\n{tmp_path}/nothing.png\n"
    for words, given in (([tmp_path / "in"], ""), (["-"], names), ([tmp_path / "empty"], ""), (["-"], "")):
        run_py = subprocess.run(
            [sys.executable, bundle / "run.py", *words], input=given, capture_output=True, text=True, check=False
        )
        ended = subprocess.run([program, bundle, *words], input=given, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (run_py.returncode, run_py.stdout), words
        assert len(ended.stderr.splitlines()) == len(run_py.stderr.splitlines()) <= 1
        assert ended.stdout.count("\n") == {"in": 5, "-": 4 if given else 0}.get(Path(words[0]).name, 0)
    for word in ("--help", "-h"):
        helped = ask(program, word)
        assert (helped.returncode, helped.stderr) == (0, "")
        assert "usage: edge-runner BUNDLE" in helped.stdout
        assert max(map(len, helped.stdout.splitlines())) <= 120


def test_an_image_too_narrow_to_crop_is_refused(guarded: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tall.npy", np.zeros((60_000, 1, 3), np.uint8))
    words = ["rgb", "224", "224", "fit=crop", "crop_share=0.1", str(tmp_path / "tall.npy")]
    ended = ask(guarded.parent / "print-input", *words)
    assert ended.returncode == 2
    assert "60000x1 pixels (height x width), too narrow to fit to 224x224" in ended.stderr


def test_photographs_become_the_same_inputs_too(guarded: Path, sets: Path) -> None:
    files = sorted(path for folder in ("bccd", "trashnet") for path in (sets / folder).rglob("*.jpg"))
    check_inputs([str(guarded.parent / "print-input")], random.Random(3).sample(files, 12))


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64") and "OPENVINO_AARCH64" in os.environ),
    reason="no cross compiler, no qemu-user, or OPENVINO_AARCH64 names no unpacked wheel of OpenVINO for aarch64",
)
def test_the_build_for_arm64_makes_the_same_inputs(bundle: Path, tmp_path: Path) -> None:
    openvino_dir = f"-DOpenVINO_DIR={os.environ['OPENVINO_AARCH64']}/openvino/cmake"
    program = build(
        ROOT / "runner", tmp_path / "build", *ARM64, openvino_dir, "-DEDGE_RUNNER_STATIC=ON", "-DEDGE_RUNNER_TESTS=ON"
    )
    check_inputs(["qemu-aarch64", str(program.parent / "print-input")], images(tmp_path / "images")[::9])
    ended = subprocess.run(
        ["qemu-aarch64", program, bundle, "--self-test"], capture_output=True, text=True, check=False
    )
    verdict = json.loads(
        ended.stdout
    )  # OpenVINO rounds otherwise there, so it may be FAIL: the bundle is of this processor
    assert verdict["verdict"] == "PASS" or "golden outputs differ" in verdict["reason"]


def test_a_static_build_needs_none_of_the_image_libraries(bundle: Path, tmp_path: Path) -> None:
    program = build(ROOT / "runner", tmp_path / "build", "-DEDGE_RUNNER_STATIC=ON")
    needed = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
    assert "libopenvino" in needed
    assert not any(name in needed for name in ("libpng", "libjpeg", "libz.", "libdeflate"))
    assert json.loads(ask(program, bundle, "--self-test").stdout)["verdict"] == "PASS"


@pytest.mark.parametrize("mode", ["gray", "rgb"])
def test_every_kind_of_image_is_classified_as_by_run_py(mode: str, bundle: Path, program: Path, tmp_path: Path) -> None:
    folder = bundle if mode == "gray" else make_coloured(bundle, tmp_path / "coloured")
    manifest, files = records.read_json(folder / "manifest.json"), images(tmp_path / "images")
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


def test_lines_are_those_of_run_py_whatever_the_file_is_called(bundle: Path, program: Path, tmp_path: Path) -> None:
    manifest = records.read_json(bundle / "manifest.json")
    path = tmp_path / 'h\u00e4ngt "schief" \u2603 \U0001f40d\t\x7f.png'
    Image.new("L", (8, 8), 90).save(path)
    model = runner.open_model(bundle, manifest, runner.check_files(bundle))
    prediction = runner.classify(model(runner.prepare(path, manifest["preprocess"]))[0], manifest)
    assert ask(program, bundle, path).stdout == json.dumps({"file": str(path), **prediction}) + "\n"
    ended = ask(program, bundle, f"{path}\n\x1b[31m.png")
    assert ended.stderr.count("\n") == 1
    assert 'h\u00e4ngt "schief" \u2603' in ended.stderr
    assert "\x1b" not in ended.stderr


def test_raw_frames_and_finished_inputs_are_classified_too(bundle: Path, program: Path, tmp_path: Path) -> None:
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


def test_the_self_test_and_the_latency_print_one_line_each(bundle: Path, program: Path) -> None:
    ended = ask(program, bundle, "--self-test", "--time", "0.2")
    verdict, timing = map(json.loads, ended.stdout.splitlines())
    assert (ended.returncode, verdict["verdict"], verdict["golden"]) == (0, "PASS", 16)
    assert verdict["files"] == len(list(bundle.iterdir())) - 1
    assert 0 <= verdict["steps"] <= 2
    assert 0 < timing["p50_ms"] <= timing["p90_ms"]
    assert openvino.__version__.split("-")[0] in timing["runtime"]


def test_other_outputs_than_the_golden_ones_are_no_pass(bundle: Path, program: Path, tmp_path: Path) -> None:
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


def test_a_model_that_missed_a_budget_runs_only_on_request(bundle: Path, program: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, best := tmp_path / "best")
    np.save(image := tmp_path / "image.npy", np.zeros((32, 32), np.uint8))
    manifest = records.read_json(bundle / "manifest.json")
    records.write_json(best / "manifest.json", {**manifest, "accepted": False})
    archive.write_checksums(best)
    message = "this model missed a budget and was not accepted; --not-accepted runs it all the same"
    for words in ((image,), ("--time", "0.1")):
        refused = ask(program, best, *words)
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", f"FAIL: {message}\n")
    refused = ask(program, best, "--self-test")
    assert (refused.returncode, json.loads(refused.stdout)) == (1, {"verdict": "FAIL", "reason": message})
    for words in ((image,), ("--self-test",)):
        ended, accepted = ask(program, best, "--not-accepted", *words), ask(program, bundle, *words)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, accepted.stdout, "")
    assert ask(program, bundle, "--not-accepted", image).returncode == 0  # it allows, and asks for nothing
    assert "--not-accepted" in ask(program).stderr


def many_scans() -> bytes:
    """A gray progressive JPEG of one block, every bit of every coefficient in a scan of its own: 883 of them."""

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    tables = b"".join(bytes([kind, 1, *[0] * 15, 0]) for kind in (0x00, 0x10))  # one code of one bit, for 0
    scans = [(0, 0, 0)] + [
        (k, high, low) for k in range(1, 64) for high, low in [(0, 13), *((n + 1, n) for n in range(12, -1, -1))]
    ]
    body = [segment(0xDA, bytes([1, 1, 0, k, k, high << 4 | low])) + b"\x7f" for k, high, low in scans]
    return (
        b"\xff\xd8" + segment(0xDB, bytes([0, *[1] * 64])) + segment(0xC2, struct.pack(">BHHBBBB", 8, 8, 8, 1, 1, 0x11, 0))
        + segment(0xC4, tables) + b"".join(body) + b"\xff\xd9"
    )  # fmt: skip


def test_wrong_use_gets_one_message(bundle: Path, run: Run, program: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "image.bmp")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    png(tmp_path / "tall.png", np.zeros((70_000, 1, 1), np.uint8), 8, 0, interlaced=False)
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg", progressive=True)
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no_end.jpg").write_bytes(whole[:-2])
    size = whole.index(b"\xff\xc2") + 5  # of the frame header
    (tmp_path / "huge.jpg").write_bytes(whole[:size] + struct.pack(">HH", 10_001, 10_001) + whole[size + 4 :])
    (tmp_path / "claims.jpg").write_bytes(whole[:size] + struct.pack(">HH", 9_999, 9_999) + whole[size + 4 :])
    noise.save(tmp_path / "baseline.jpg")
    middle = bytearray((tmp_path / "baseline.jpg").read_bytes())
    middle[len(middle) // 2 : len(middle) // 2] = b"\xff\xd9"
    (tmp_path / "middle.jpg").write_bytes(middle)
    (tmp_path / "scans.jpg").write_bytes(many_scans())
    runner.prepare(
        tmp_path / "scans.jpg", {"mode": "gray", "image_size": (8, 8), "mean": MEAN, "std": STD}
    )  # it is whole
    png(tmp_path / "claims.png", np.zeros((1, 1, 1), np.uint8), 8, 0, interlaced=False)
    claims = bytearray((tmp_path / "claims.png").read_bytes())
    claims[16:24] = struct.pack(">II", 9_999, 9_999)
    (tmp_path / "claims.png").write_bytes(checked(claims))
    noise.save(tmp_path / "exif.png", exif=b"Exif\0\0neither II nor MM")
    png(tmp_path / "palette.png", np.full((2, 2, 1), 200), 8, 3, interlaced=False)
    colours = (tmp_path / "palette.png").read_bytes()
    at = colours.index(b"PLTE") - 4
    colours = colours[:at] + struct.pack(">I4s30sI", 30, b"PLTE", bytes(30), 0) + colours[at + 12 + 768 :]
    (tmp_path / "palette.png").write_bytes(checked(bytearray(colours)))
    for words, status, message in [
        ((), 2, "name a bundle"),
        ((bundle,), 2, "name an image, or ask for --self-test or --time"),
        ((bundle, "--frame", "48", "x.raw"), 2, "expected HEIGHTxWIDTH"),
        ((bundle, "--time", "soon"), 2, "seconds"),
        ((bundle, "--tyme"), 2, "unknown option --tyme"),
        ((bundle, tmp_path / "image.bmp"), 2, "is none of PNG, JPEG, PGM and PPM"),
        ((bundle, tmp_path / "cut.png"), 2, "cut.png is cut short"),
        ((bundle, tmp_path / "nothing.png"), 2, "nothing.png is not there"),
        ((bundle, tmp_path / "tall.png"), 2, "70000x1 pixels (height x width); accepted are up to 65535 a side"),
        ((bundle, tmp_path / "claims.png"), 2, "claims.png is cut short"),
        ((bundle, tmp_path / "exif.png"), 2, "exif.png has EXIF that cannot be read"),
        ((bundle, tmp_path / "palette.png"), 2, "palette.png is damaged: "),
        ((bundle, tmp_path / "cmyk.jpg"), 2, "is in CMYK, the colours of a printer; convert it to RGB"),
        ((bundle, tmp_path / "cut.jpg"), 2, "cut.jpg is cut short"),
        ((bundle, tmp_path / "no_end.jpg"), 2, "no_end.jpg is cut short"),
        ((bundle, tmp_path / "huge.jpg"), 2, "10001x10001 pixels"),
        ((bundle, tmp_path / "claims.jpg"), 2, "claims.jpg is cut short"),
        ((bundle, tmp_path / "middle.jpg"), 2, "middle.jpg is damaged: Corrupt JPEG data"),
        ((bundle, tmp_path / "scans.jpg"), 2, "scans.jpg is damaged: more than 100 scans"),
        ((tmp_path / "nowhere", "x.png"), 1, "SHA256SUMS is missing or damaged"),
        ((run.bundle, "x.png"), 1, "this program was built for openvino, the bundle is for onnxruntime"),
    ]:
        ended = ask(program, *words)
        assert ended.returncode == status, words
        assert message in ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1 or "usage:" in ended.stderr
    np.save(tmp_path / "frame.npy", np.zeros((32, 32), np.uint8))
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([program, bundle, tmp_path / "frame.npy"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    assert ended.returncode == 2
    assert "cannot write the predictions" in ended.stderr


def test_cmake_says_what_is_missing(tmp_path: Path) -> None:
    for words, message in [
        ([], "-DRUNTIME=openvino or -DRUNTIME=onnxruntime"),
        (["-DRUNTIME=openvino", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=ON"], "OpenVINO's CMake package was not found"),
        (["-DRUNTIME=onnxruntime", f"-DONNXRUNTIME_ROOT={tmp_path}"], "ONNX Runtime was not found"),
        (["-DRUNTIME=openvino", "-DCMAKE_DISABLE_FIND_PACKAGE_PNG=ON"], "apt-get install libpng-dev"),
        (
            ["-DRUNTIME=openvino", *(f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("JPEG", "nlohmann_json"))],
            "apt-get install libjpeg62-turbo-dev nlohmann-json3-dev",
        ),
    ]:
        shutil.rmtree(tmp_path / "build", ignore_errors=True)
        command = ["cmake", "-S", str(ROOT / "runner"), "-B", str(tmp_path / "build"), *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode != 0
        assert message in " ".join(ended.stderr.split())


@pytest.mark.skipif("ONNXRUNTIME_ROOT" not in os.environ, reason="ONNXRUNTIME_ROOT names no release with headers")
def test_onnx_runtime_answers_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["-DRUNTIME=onnxruntime", f"-DONNXRUNTIME_ROOT={os.environ['ONNXRUNTIME_ROOT']}"]
    program, files = build(ROOT / "runner", tmp_path / "build", *more), images(tmp_path / "images")
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
    ended = ask(guarded, bundle, "--self-test", *images(tmp_path / "images"), TBB_ENABLE_SANITIZERS="1")
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


def test_parsers_withstand_files_that_were_hashed_anew(bundle: Path, guarded: Path, tmp_path: Path) -> None:
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


def test_manifests_are_read_strictly(bundle: Path, guarded: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, broken := tmp_path / "broken")
    text = (bundle / "manifest.json").read_text()
    changes: list[tuple[Callable[[str], str], str]] = [
        (lambda text: text.replace("{", '{"schema": 1, ', 1), "holds the key schema twice"),
        (lambda text: text.replace("{", '{"x": ' + "[" * 65 + "]" * 65 + ", ", 1), "is nested deeper than 64"),
        (lambda text: text.replace("{", '{"x": ' + "[" * 100_000, 1), "is nested deeper than 64"),
        (lambda text: text.replace("{", '{"x": NaN, ', 1), "is not valid JSON (at byte "),
        (lambda text: text.replace("{", '{"x": 1e999, ', 1), "is not valid JSON"),
        (lambda text: text.replace("{", '{"x": 01, ', 1), "is not valid JSON"),
        (lambda text: text.replace("{", '{"x": "\udcff", ', 1), "is not valid JSON"),
        (lambda text: text.replace("{", "{// a comment\n", 1), "is not valid JSON"),
        (lambda text: text + "{}", "is not valid JSON"),
        (lambda _: "", "is not valid JSON"),
        (lambda _: "[]", "has no schema"),
        (lambda text: text.replace('"schema": 1', '"schema": "1"'), "manifest.json: schema: string; expected a number"),
        (lambda text: text.replace('"threads": 1', '"threads": -1'), "threads: number; expected a whole number"),
        (lambda text: text.replace("{", '{"accepted": 0, ', 1), "accepted: number; expected true or false"),
        (lambda text: text.replace("{", '{"accepted": null, ', 1), "accepted: null; expected true or false"),
    ]
    for change, message in changes:
        (broken / "manifest.json").write_text(change(text), errors="surrogateescape")
        archive.write_checksums(broken)
        ended = ask(guarded, broken, "--self-test", TBB_ENABLE_SANITIZERS="1")
        assert clean(ended), ended.stderr
        assert ended.returncode == 1
        assert message in json.loads(ended.stdout)["reason"]
    (broken / "manifest.json").write_text(text.replace("{", '{"x": ' + "[" * 64 + "]" * 64 + ", ", 1))
    archive.write_checksums(broken)
    assert ask(guarded, broken, "--self-test", TBB_ENABLE_SANITIZERS="1").returncode == 0


def test_damaged_images_are_refused_one_by_one(bundle: Path, guarded: Path, tmp_path: Path) -> None:
    chance, whole = random.Random(8), images(tmp_path / "images")
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
