#!/usr/bin/env python3
"""Classify images with the model in this bundle. Travels in the bundle as run.py.

    python run.py image.png frame.npy ...       print one JSON line per image; a folder: all in it; -: names on stdin
    python run.py --self-test                   check every file's hash and the golden outputs; exit 0 or 1
    python run.py --watch counts.json camera/   also count image statistics and predictions for `toolchain drift`

Needs numpy and the bundle's runtime, and Pillow for image files. A .npy file holds uint8 pixels
[height, width] or [height, width, 3], or the preprocessed float32 input [1, 3, height, width]. Before it classifies
anything, it checks that the files are those that were built and that the golden inputs still give their outputs.
The toolchain prepares its own images with these functions: the same pixels on the board as in training.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this folder: a file in it must not be imported in place of a library

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np

LONGEST_NAME = 255
LARGEST_PICTURE = 100_000_000  # pixels; a larger image is treated as a decompression bomb
STRETCHED = {"image_size", "mode", "mean", "std", "resize", "scale"}  # keys of `preprocess` that need no pixels.py


class Refused(Exception):
    """The bundle, the input or the runtime is wrong or damaged; the message says how."""


def read_image(path, mode):
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


@functools.lru_cache(maxsize=None)
def load_beside(name):
    """Import another file of the bundle."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().with_name(name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(pixels, preprocess, path=""):
    """Bring uint8 pixels to the size and channel order that the network sees, by pixels.py if stretching is not all."""
    if STRETCHED.issuperset(preprocess):
        return fit_size(pixels, preprocess["image_size"])
    beside = load_beside("pixels")
    try:
        return beside.fit(pixels, preprocess)
    except (ImportError, beside.NotFitted) as reason:
        raise Refused(f"{path}: {reason}") from reason


def prepare(path, preprocess):
    """Read a file and return the network's input, float32 [1, 3, height, width]."""
    path, size = Path(path), tuple(preprocess["image_size"])
    if not path.is_file():
        raise Refused(f"the folder {path} holds no files" if path.is_dir() else f"{path} does not exist")
    if path.suffix != ".npy":
        pixels = read_image(path, preprocess["mode"])
    else:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # maps it, so a false header allocates nothing
            if not isinstance(array, np.ndarray) or array.size > 3 * LARGEST_PICTURE:
                raise ValueError(f"expected one array of at most {3 * LARGEST_PICTURE} values")
            pixels = np.array(array)
            if not pixels.size:
                raise ValueError("it is empty")
        except Exception as reason:  # numpy raises many exception types for a broken file
            raise Refused(f"{path} is not a readable .npy file ({reason})") from reason
        if pixels.dtype == np.float32 and pixels.shape == (1, 3, *size):
            if not np.isfinite(pixels).all():
                raise Refused(f"{path} holds NaN or infinite values")
            return pixels
        given = ({2: "gray", 3: "rgb"}.get(pixels.ndim), pixels.dtype)
        if given != (preprocess["mode"], np.uint8) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise Refused(
                f"{path} holds {pixels.dtype} {pixels.shape}; accepted are uint8 [height, width] for gray, uint8 "
                f"[height, width, 3] for rgb (this model: {preprocess['mode']}), or float32 (1, 3, {size[0]}, {size[1]})"
            )
    return normalise(fit(pixels, preprocess, path), preprocess["mean"], preprocess["std"])[None]


def check_files(folder):
    """Check every file against SHA256SUMS, and return {name: SHA-256}. Refuse where one differs or is not listed."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as reason:
        raise Refused(f"{folder / 'SHA256SUMS'} is missing or damaged; the bundle cannot be trusted") from reason
    for name in {"manifest.json", "golden.npz", *listed}:
        path = folder / name
        if name not in listed or name != Path(name).name or len(name) > LONGEST_NAME:
            raise Refused(f"{name} is not listed in SHA256SUMS; the bundle cannot be trusted")
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        except OSError as reason:
            raise Refused(f"cannot read {name}: {reason.strerror}") from reason
        if digest != listed[name]:
            raise Refused(f"{name} is missing or was changed since the bundle was built; flash the bundle again")
    return listed


def _onnxruntime(manifest, path):
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 ONNX Runtime reports every session to its vendor
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = manifest["threads"]
    options.inter_op_num_threads = 1
    disabled = ["WeightBiasQuantization"]  # it would quantize layers that were left in float
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"], disabled_optimizers=disabled)
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def _openvino(manifest, path):
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": manifest["threads"],
        "INFERENCE_PRECISION_HINT": manifest["precision_hint"],
    }  # fmt: skip
    core = openvino.Core()
    if path.suffix == ".blob":
        compiled = core.import_model(path.read_bytes(), "CPU", hints)
    else:
        compiled = core.compile_model(str(path), "CPU", hints)
    request = compiled.create_infer_request()
    inputs, outputs = request.get_input_tensor().data, request.get_output_tensor().data

    def model(image):
        np.copyto(inputs, image)
        request.infer()
        return outputs.copy()

    return model


def open_model(folder, manifest, listed, name=None):
    """Return the model (or, with `name`, one of its further forms) as a function from its input to logits [1, classes]."""
    name = name or manifest["model"]["files"][0]
    if name not in listed:
        raise Refused(f"{name} is not listed in SHA256SUMS; the bundle cannot be trusted")
    openers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if manifest["runtime"] not in openers:
        raise Refused(f"the manifest names the runtime {manifest['runtime']!r}; run.py supports {', '.join(openers)}")
    try:
        return openers[manifest["runtime"]](manifest, folder / name)
    except ImportError as reason:
        raise Refused(f"{manifest['runtime']} is not installed: pip install {manifest['runtime']}") from reason
    except Exception as reason:  # the runtimes raise many exception types
        built, least = manifest["runtime_version"][manifest["runtime"]], manifest.get("runtime_least")
        requirement = f"built with {built}" + (f", needs {least} or newer" if least else "")
        installed = f"{manifest['runtime']} {_installed_version(manifest['runtime'])}"
        raise Refused(f"the installed {installed} cannot open {name} ({requirement}): {reason}") from reason


def self_test(folder, manifest, model, extra_steps=0.0):
    """Run the golden inputs; return the largest difference in quantization steps and the number of inputs.

    Refuse where the difference exceeds the golden tolerance plus `extra_steps`.
    """
    golden = np.load(folder / "golden.npz", allow_pickle=False)
    preprocess = manifest["preprocess"]
    images = normalise(golden["pixels"], preprocess["mean"], preprocess["std"])
    return compare(model, images, golden["logits"], manifest, extra_steps), len(images)


def compare(model, inputs, golden_logits, manifest, extra_steps):
    """Return the largest difference to the golden logits in quantization steps; refuse where it is too large."""
    step, worst = manifest["golden"]["step"], 0.0
    limit = manifest["golden"]["tolerance_steps"] + extra_steps
    for image, expected in zip(inputs, golden_logits):
        logits = model(image[None])[0]
        worst = float(np.maximum(worst, np.abs(logits - expected).max() / step))  # keeps NaN, as max() would not
        margin = np.sort(expected)[-1] - np.sort(expected)[-2]
        if not worst <= limit or (logits.argmax() != expected.argmax() and margin > limit * step):
            raise Refused(f"golden outputs differ by {worst:.1f} quantization steps; {limit:g} are allowed")
    return worst


def self_test_forms(folder, manifest, listed):
    """Run the golden inputs through every further form that the installed runtime can open.

    Return the names of the forms that passed, and those that were not run, each with its reason.
    """
    passed, skipped = [], []
    for form in manifest.get("forms", []):
        name = form["files"][0]
        if name.endswith(".c"):
            skipped.append(f"{name} (to be linked)")
            continue
        built_for = form["bound_to"].get(manifest["runtime"])
        try:
            model = open_model(folder, manifest, listed, name)
        except Refused:
            if not name.endswith(".blob") and built_for in {None, _installed_version(manifest["runtime"])}:
                raise  # a blob is exempt: it also needs the processor that it was compiled on
            skipped.append(f"{name} (for {form['bound_to']} only)")
            continue
        try:
            if form["input"]:
                golden = np.load(folder / "golden_frames.npz", allow_pickle=False)
                compare(model, golden["frames"], golden["logits"], manifest, form["max_steps"])
            else:
                self_test(folder, manifest, model, form["max_steps"])
        except Refused as reason:
            raise Refused(f"{name}: {reason}") from reason
        passed.append(name)
    return passed, skipped


def _installed_version(runtime):
    return importlib.import_module(runtime).__version__


def classify(logits, manifest):
    """Return the predicted class, its probability and the top three of one image's logits [classes]."""
    logits = logits.astype(np.float64)
    softmax = np.exp(logits - logits.max())
    softmax /= softmax.sum()
    best = [(manifest["classes"][i], round(float(softmax[i]), 4)) for i in np.argsort(-softmax, kind="stable")[:3]]
    return {"class": best[0][0], "probability": best[0][1], "best": dict(best)}


def open_counters(path, folder, manifest, listed):
    """Return the counters that `--watch` adds to; None without that option."""
    if path is None:
        return None
    if path == "" or Path(path).is_dir():
        raise Refused(f"--watch {path!r}: give a file, such as counts.json")
    if not {"watch.py", "watch.npz"} <= set(listed):
        raise Refused("--watch needs watch.py and watch.npz, which SHA256SUMS does not list; this bundle cannot watch")
    watch = load_beside("watch")
    try:
        return watch.open_counters(path, folder, len(manifest["classes"]))
    except watch.CounterFileError as reason:
        raise Refused(f"{reason}; move {path} away to start counting anew") from reason


def list_files(names):
    """Yield files as given; a folder stands for the files below it, or itself without any; - for the lines of stdin."""
    for name in names:
        if name == "-":
            yield from list_files(line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(name):  # noqa: PTH112  false for a path that cannot be read; `prepare` says why
            files = sorted(path for path in Path(name).rglob("*") if path.is_file() and not path.name.startswith("."))
            yield from map(str, files or [name])
        else:
            yield name


def classify_files(names, manifest, model, counts):
    """Print one JSON line per image; return the exit status: 0, or 2 if an image could not be read."""
    status, preprocess = 0, manifest["preprocess"]
    for name in list_files(names):
        try:
            image = prepare(name, preprocess)
        except (Refused, OSError, MemoryError) as reason:
            print(f"error: {reason}" if isinstance(reason, Refused) else f"error: {name}: {reason}", file=sys.stderr)
            status = 2
            continue
        logits = model(image)[0]
        print(json.dumps({"file": name, **classify(logits, manifest)}))
        if counts and not counts.add_input(image, logits, preprocess):
            status = 2
    return status


def main(arguments=None):
    """Run the command line; return the exit status: 0 done, 1 self-test failed, 2 wrong input."""
    parser = argparse.ArgumentParser(description="Classify images with the model in this bundle; one JSON line each.")
    parser.add_argument("files", nargs="*", help="images (need Pillow), .npy files, folders; -: names on stdin")
    parser.add_argument("--self-test", action="store_true", help="check hashes and golden outputs; print PASS or FAIL")
    parser.add_argument("--watch", metavar="COUNTS", help="count image statistics and predictions in this JSON file")
    parser.add_argument("--not-accepted", action="store_true", help="run a bundle that missed a budget, to look at it")
    options = parser.parse_args(arguments)
    if not options.files and not options.self_test:
        parser.error("give at least one image, or --self-test")
    folder = Path(__file__).resolve().parent
    try:
        listed = check_files(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        if not (manifest.get("accepted", True) or options.not_accepted):
            raise Refused("this model missed a budget and was not accepted; --not-accepted runs it all the same")
        if not (STRETCHED.issuperset(manifest["preprocess"]) or "pixels.py" in listed):
            raise Refused("pixels.py, which this model needs, is not listed in SHA256SUMS; flash the bundle again")
        model = open_model(folder, manifest, listed)
        worst, images = self_test(folder, manifest, model)
        passed, skipped = self_test_forms(folder, manifest, listed) if options.self_test else ([], [])
    except Refused as reason:
        print(f"FAIL: {reason}", file=sys.stdout if options.self_test else sys.stderr)
        return 1
    if options.self_test:
        print(
            f"PASS: {len(listed)} files intact, {images} golden images within {worst:.2f} quantization steps"
            + (f"; also passed: {', '.join(passed)}" if passed else "")
            + (f"; not run: {', '.join(skipped)}" if skipped else "")
        )
    counts, status = None, 2
    try:
        counts = open_counters(options.watch, folder, manifest, listed)
        if counts:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        status = classify_files(options.files, manifest, model, counts)
    except Refused as reason:
        print(f"error: {reason}", file=sys.stderr)
    finally:
        if counts and not counts.finish():  # Ctrl-C and SIGTERM end here too
            status = 2
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as reason:
        print(f"error: cannot write the results: {reason.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
