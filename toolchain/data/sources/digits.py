"""scikit-learn's bundled handwritten digits: 1,797 real scans of 8x8 pixels, ten classes (UCI ML repository, CC BY 4.0)."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(folder: Path) -> None:
    """Writes the set as `folder/<class>/<number>.png`, gray, 8x8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / CLASSES[label] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(path)
