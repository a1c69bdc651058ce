"""Networks as users write them, for tests: the text of a file `net.py` and of a module beside it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from toolchain.config import model_reference
from toolchain.models.sources import python_file

LAYERS = """
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


class Depthwise(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs)
        self.point, self.last = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return torch.relu(self.last(self.point(torch.relu(self.norm(self.depth(x))))))


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.weigh(x)


class Branches(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs // 2, 1)
        self.three = nn.Conv2d(inputs, outputs // 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return torch.relu(self.norm(torch.cat([self.one(x), self.three(x)], 1)))
"""
NET = """
import torch
from torch import nn

from user_layers import Branches, Depthwise, Gate, Residual


class Net(nn.Module):
    def __init__(self, parts, classes, width=32):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.parts = nn.Sequential(*parts)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(self.parts(self.stem(x)).mean((2, 3)))


def residual(classes):
    return Net([Residual(32), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), Residual(64)], classes)


def depthwise(num_classes):
    return Net([Depthwise(32, 64), Depthwise(64, 64)], num_classes)


def gated(classes, width=64):
    return Net([Residual(32), Gate(32), Depthwise(32, width), Gate(width)], classes)


def branches():
    return Net([Branches(32, 64), nn.MaxPool2d(2), Branches(64, 64)], 10)


class Hidden(Net):
    def forward(self, x):
        y = self.stem(x)
        with torch.no_grad():
            y = self.parts(y)
        return self.head(y.mean((2, 3)))


def untraceable(classes):
    return Hidden([Residual(32), Depthwise(32, 64)], classes)


class Dynamic(Net):
    def forward(self, x):
        y = self.stem(x)
        if y.mean() > 0.5:
            y = 2 * y
        return self.head(self.parts(y).mean((2, 3)))


def dynamic(classes):
    return Dynamic([Residual(32), Depthwise(32, 64)], classes)


class Wrong(Net):
    def forward(self, x):
        return self.head(self.parts(self.stem(x)).view(1, -1))


def wrong(classes):
    return Wrong([Depthwise(32, 64)], classes)


class Two(Net):
    def forward(self, x):
        return {"logits": super().forward(x), "features": x}


def two(classes):
    return Two([Depthwise(32, 64)], classes)


def pair(classes):
    return residual(classes), None


def nothing(classes):
    residual(classes)


def named(classes):
    return Net


def deep(classes, depth, width):
    return residual(classes)


def leaves(classes):
    print("done")
    raise SystemExit(3)


def fails(classes):
    return nn.Linear(classes, "two")


def crashes(classes):
    import os

    print("out of memory", flush=True)
    os._exit(7)


not_a_function = 3
"""


@contextlib.contextmanager
def forget_imports(folder: Path) -> Iterator[None]:
    """Forget what the block imports from below `folder`, so that the next test imports its own files."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


def write(folder: Path) -> Path:
    """Write `net.py` and what it imports; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "user_layers.py").write_text(LAYERS)
    (folder / "net.py").write_text(NET)
    return folder / "net.py"


def build(net: Path, function: str, classes: int = 3) -> nn.Module:
    """Build a network of `net.py` in this process."""
    reference = model_reference.parse(f"{net}:{function}")
    assert reference is not None
    return python_file.call(reference, classes, {})


def trained(net: Path, function: str) -> nn.Module:
    """Build a network whose batch norm has the statistics of images, as if it had been trained; the same every time."""
    torch.manual_seed(1)
    model = build(net, function).train()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(8, 3, 16, 16))
    return model.eval()


def save_checkpoint(net: Path, function: str, path: Path, **more: object) -> Path:
    """Save a network's weights as training scripts do: nested, with a prefix, beside other values."""
    state = {f"module.{name}": tensor for name, tensor in trained(net, function).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, **more}, path)
    return path
