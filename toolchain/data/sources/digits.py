"""The handwritten digits bundled with scikit-learn: 1,797 scans of 8x8 pixels, ten classes (UCI, CC BY 4.0)."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(folder: Path) -> None:
    """Write the dataset as `folder/<class>/<number>.png`, gray, 8x8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / CLASSES[label] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(path)
