#!/usr/bin/env python3
"""Classifies pictures with the model in this bundle. Travels in the bundle as run.py.

    python run.py picture.png frame.npy ...     one JSON line a picture; a folder stands for all files in it
    python run.py --self-test                   checks every file's hash and the golden outputs, exit 0 or 1
    python run.py --watch counts.json camera/   counts what it sees as well; `toolchain drift` says what has moved

Needs numpy and the bundle's runtime, and Pillow for picture files. A .npy file holds uint8 pixels
[height, width] or [height, width, 3], or the finished float32 input [1, 3, height, width]. Before it classifies it
makes sure that the files are those that were built and that the golden inputs still give their outputs.

The toolchain prepares its training and test images with the functions of this very file, so the model sees the
same pixels here as it did there.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # of this folder: whatever lies in it must not pass for a library

import argparse
import hashlib
import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np

LONGEST_NAME = 255
LARGEST_PICTURE = 100_000_000  # pixels; more is taken for a decompression bomb


class Refused(Exception):
    """The bundle, the input or the runtime is not as it should be; the message says how."""


def read_picture(path, mode):
    """Decodes a picture file to uint8 [height, width] for mode "gray" or [height, width, 3] for "rgb"."""
    try:
        from PIL import Image, ImageOps
    except ImportError as reason:
        raise Refused("picture files need Pillow (pip install pillow); .npy files do not") from reason
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise Refused(f"{path} has {picture.width}x{picture.height} pixels, more than any camera's; refused")
            picture = ImageOps.exif_transpose(picture)
            if picture.mode == "F":
                raise Refused(
                    f"{path} holds floating-point numbers, whose black and white nobody can know; give 8 or 16 bits"
                )
            if picture.mode.startswith("I"):  # 16 bit: the eight high bits, as Pillow would clip instead
                wide = np.asarray(picture, dtype=np.int64)
                picture = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
            return np.asarray(picture.convert("L" if mode == "gray" else "RGB"))
    except Refused:
        raise
    except Exception as reason:  # Pillow raises many kinds for a broken file
        raise Refused(f"{path} is not a readable picture ({type(reason).__name__}: {reason})") from reason


def fit_size(pixels, size):
    """Stretches uint8 pixels to (height, width), bilinear with antialiasing; the right size passes through."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    try:
        from PIL import Image
    except ImportError as reason:
        raise Refused(
            f"pixels of {pixels.shape[:2]} need Pillow to become {tuple(size)} (pip install pillow)"
        ) from reason
    # width first, then height: left to itself, Pillow takes another order from release 13 on, and rounds otherwise
    narrow = Image.fromarray(pixels).resize((size[1], pixels.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def normalise(pixels, mean, std):
    """uint8 [..., height, width] or [..., height, width, 3] to float32 [..., 3, height, width]."""
    if pixels.ndim < 3 or pixels.shape[-1] != 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    scale = np.float32(1 / 255) / np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return np.ascontiguousarray(np.moveaxis(pixels * scale - shift, -1, -3), dtype=np.float32)


def denormalise(image, mean, std, mode):
    """The network's input, float32 [1, 3, height, width], as the uint8 pixels it was made of."""
    unit = np.moveaxis(image[0], 0, -1) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    pixels = np.rint(unit * 255).clip(0, 255).astype(np.uint8)
    return pixels[..., 0] if mode == "gray" else pixels


def prepare(path, preprocess):
    """A file as the network's input, float32 [1, 3, height, width]."""
    path, size = Path(path), tuple(preprocess["image_size"])
    if not path.is_file():
        raise Refused(f"{path} holds no files" if path.is_dir() else f"{path} is not there")
    if path.suffix != ".npy":
        pixels = read_picture(path, preprocess["mode"])
    else:
        try:
            given = np.load(path, mmap_mode="r", allow_pickle=False)  # its header is believed only as far as it is long
            if not isinstance(given, np.ndarray) or given.size > 3 * LARGEST_PICTURE:
                raise ValueError("one array of at most a picture's size is wanted")
            pixels = np.array(given)
            if not pixels.size:
                raise ValueError("it is empty")
        except Exception as reason:  # numpy raises many kinds for a broken file
            raise Refused(f"{path} is not a readable .npy file ({reason})") from reason
        if pixels.dtype == np.float32 and pixels.shape == (1, 3, *size):
            if not np.isfinite(pixels).all():
                raise Refused(f"{path} holds values that are not numbers, or not finite")
            return pixels
        shapes = {2: "gray", 3: "rgb"}
        wanted = (preprocess["mode"], np.uint8)
        if (shapes.get(pixels.ndim), pixels.dtype) != wanted or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise Refused(
                f"{path} holds {pixels.dtype} {pixels.shape}; wanted are uint8 [height, width] for gray, uint8 "
                f"[height, width, 3] for rgb (this model: {preprocess['mode']}), or float32 (1, 3, {size[0]}, {size[1]})"
            )
    return normalise(fit_size(pixels, size), preprocess["mean"], preprocess["std"])[None]


def check_files(folder):
    """Compares every file with SHA256SUMS, and that nothing is missing from it."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as reason:
        raise Refused(f"{folder / 'SHA256SUMS'} is missing or damaged; the bundle cannot be trusted") from reason
    for name in {"manifest.json", "golden.npz", *listed}:
        path = folder / name
        if name not in listed or name != Path(name).name or len(name) > LONGEST_NAME:
            raise Refused(f"SHA256SUMS does not vouch for {name}; the bundle cannot be trusted")
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        except OSError as reason:
            raise Refused(f"{name} cannot be read: {reason.strerror}") from reason
        if found != listed[name]:
            raise Refused(f"{name} is missing or was changed since the bundle was built; flash it again")
    return listed


def _onnxruntime(manifest, path):
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it tells its maker of every session
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = manifest["threads"]
    options.inter_op_num_threads = 1
    unwanted = ["WeightBiasQuantization"]  # it would quantize layers that were left in float
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
    )
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def _openvino(manifest, path):
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": manifest["threads"],
        "INFERENCE_PRECISION_HINT": manifest["precision_hint"],
    }
    core = openvino.Core()
    if path.suffix == ".blob":
        compiled = core.import_model(path.read_bytes(), "CPU", hints)
    else:
        compiled = core.compile_model(str(path), "CPU", hints)
    request = compiled.create_infer_request()
    source, result = request.get_input_tensor().data, request.get_output_tensor().data

    def model(image):
        np.copyto(source, image)
        request.infer()
        return result.copy()

    return model


def open_model(folder, manifest, listed, name=None):
    """The model, or a form of it by its file, as a function from its input to logits [1, classes]."""
    name = name or manifest["model"]["files"][0]
    if name not in listed:
        raise Refused(f"SHA256SUMS does not vouch for {name}; the bundle cannot be trusted")
    openers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if manifest["runtime"] not in openers:
        raise Refused(f"this runner knows {', '.join(openers)}, the manifest asks for {manifest['runtime']!r}")
    try:
        return openers[manifest["runtime"]](manifest, folder / name)
    except ImportError as reason:
        raise Refused(f"{manifest['runtime']} is not installed: pip install {manifest['runtime']}") from reason
    except Exception as reason:  # the runtimes raise many kinds
        built, least = manifest["runtime_version"][manifest["runtime"]], manifest.get("runtime_least")
        wanted = f"built with {built}" + (f", needs {least} or newer" if least else "")
        here = f"{manifest['runtime']} {_installed(manifest['runtime'])}"
        raise Refused(f"the installed {here} refuses {name} ({wanted}): {reason}") from reason


def self_test(folder, manifest, model, more=0.0):
    """Largest difference to the golden outputs in quantization steps, and of how many; refuses where it is too large."""
    golden = np.load(folder / "golden.npz", allow_pickle=False)
    sees = manifest["preprocess"]
    images = normalise(golden["pixels"], sees["mean"], sees["std"])
    return compare(model, images, golden["logits"], manifest, more), len(images)


def compare(model, inputs, answers, manifest, more):
    """Largest difference in quantization steps; refuses where the golden tolerance and `more` are exceeded."""
    step, worst = manifest["golden"]["step"], 0.0
    limit = manifest["golden"]["tolerance_steps"] + more
    for image, wanted in zip(inputs, answers):
        logits = model(image[None])[0]
        worst = float(np.maximum(worst, np.abs(logits - wanted).max() / step))  # keeps NaN, as max() would not
        margin = np.sort(wanted)[-1] - np.sort(wanted)[-2]
        if not worst <= limit or (logits.argmax() != wanted.argmax() and margin > limit * step):
            raise Refused(f"golden outputs differ by {worst:.1f} quantization steps, allowed are {limit:g}")
    return worst


def test_forms(folder, manifest, listed):
    """Asks every further form that this runtime opens; says which, and which are for another version or another use."""
    fine, left = [], []
    for form in manifest.get("forms", []):
        name = form["files"][0]
        if name.endswith(".c"):
            left.append(f"{name} (to be linked)")
            continue
        bound = form["bound_to"].get(manifest["runtime"])
        try:
            model = open_model(folder, manifest, listed, name)
        except Refused:
            if not name.endswith(".blob") and bound in {None, _installed(manifest["runtime"])}:
                raise  # a blob is also for one kind of processor only
            left.append(f"{name} (for {form['bound_to']} only)")
            continue
        try:
            if form["input"]:
                golden = np.load(folder / "golden_frames.npz", allow_pickle=False)
                compare(model, golden["frames"], golden["logits"], manifest, form["max_steps"])
            else:
                self_test(folder, manifest, model, form["max_steps"])
        except Refused as reason:
            raise Refused(f"{name}: {reason}") from reason
        fine.append(name)
    return fine, left


def _installed(runtime):
    import importlib

    return importlib.import_module(runtime).__version__


def classify(logits, manifest):
    """Class, probability and the three best of one answer, [classes]."""
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = [(manifest["classes"][i], round(float(shares[i]), 4)) for i in np.argsort(-shares, kind="stable")[:3]]
    return {"class": best[0][0], "probability": best[0][1], "best": dict(best)}


def counters(path, folder, manifest, listed):
    """What `--watch` counts into; None without it."""
    if path is None:
        return None
    if path == "" or Path(path).is_dir():
        raise Refused(f"--watch {path!r}: a file is wanted, such as counts.json")
    if not {"watch.py", "watch.npz"} <= set(listed):
        raise Refused("SHA256SUMS does not vouch for what --watch needs; this bundle cannot watch")
    plan = importlib.util.spec_from_file_location("watch", folder / "watch.py")
    watch = importlib.util.module_from_spec(plan)
    plan.loader.exec_module(watch)
    bundle = hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    try:
        return watch.Counters(path, bundle, watch.edges_in(folder / watch.REFERENCE), len(manifest["classes"]))
    except watch.Unusable as reason:
        raise Refused(f"{reason}; move {path} away to count anew") from reason


def listing(names):
    """Files in the order given; a folder stands for all files below it, by name, and for itself where it has none."""
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112  false for what cannot be looked at; `prepare` says why
            found = sorted(path for path in Path(name).rglob("*") if path.is_file() and not path.name.startswith("."))
            yield from map(str, found or [name])
        else:
            yield name


def answer(names, manifest, model, counts):
    """One JSON line a picture; returns the exit status: 2 where one of them could not be read."""
    status, sees = 0, manifest["preprocess"]
    for name in listing(names):
        try:
            image = prepare(name, sees)
        except (Refused, OSError, MemoryError) as reason:
            print(f"error: {reason}" if isinstance(reason, Refused) else f"error: {name}: {reason}", file=sys.stderr)
            status = 2
            continue
        logits = model(image)[0]
        print(json.dumps({"file": name, **classify(logits, manifest)}))
        if counts:
            try:
                counts.add(denormalise(image, sees["mean"], sees["std"], sees["mode"]), logits)
            except type(counts).unusable as reason:  # a full disk is no reason to stop seeing
                print(f"error: {reason}", file=sys.stderr)
                status = 2
    return status


def main(arguments=None):
    """Command line; returns the exit status: 0 fine, 1 self-test failed, 2 wrong input."""
    parser = argparse.ArgumentParser(description="Classify pictures with the model in this bundle; one JSON line each.")
    parser.add_argument("files", nargs="*", help="pictures (need Pillow), .npy files, or folders of them")
    parser.add_argument("--self-test", action="store_true", help="check hashes and golden outputs, say PASS or FAIL")
    parser.add_argument("--watch", metavar="COUNTS", help="count what is seen and answered in this JSON file")
    options = parser.parse_args(arguments)
    if not options.files and not options.self_test:
        parser.error("name a picture, or ask for --self-test")
    folder = Path(__file__).resolve().parent
    try:
        listed = check_files(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        model = open_model(folder, manifest, listed)
        worst, images = self_test(folder, manifest, model)
        fine, left = test_forms(folder, manifest, listed) if options.self_test else ([], [])
    except Refused as reason:
        print(f"FAIL: {reason}", file=sys.stdout if options.self_test else sys.stderr)
        return 1
    if options.self_test:
        print(
            f"PASS: {len(listed)} files intact, {images} golden images within {worst:.2f} quantization steps"
            + (f"; the same from {', '.join(fine)}" if fine else "")
            + (f"; not run: {', '.join(left)}" if left else "")
        )
    counts = None
    try:
        counts = counters(options.watch, folder, manifest, listed)
        if counts:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return answer(options.files, manifest, model, counts)
    except Refused as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    finally:
        if counts:  # Ctrl-C and SIGTERM end here too
            try:
                counts.close()
            except type(counts).unusable as reason:
                print(f"error: {reason}", file=sys.stderr)
                return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as reason:
        print(f"error: cannot write what was found: {reason.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
