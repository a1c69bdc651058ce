"""The manifest of a bundle: its files, inputs and outputs, accuracy and provenance, as one checked value.

It is an interface: boards, pipelines and programs in other languages read it. `toolchain schema manifest` prints its JSON
schema. New keys keep the schema number; it goes up when an existing key changes its meaning. Schema 2 is written where
images are not only stretched (see edge/pixels.py), so that a program that knows schema 1 alone refuses the bundle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from toolchain.config import read_config
from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError
from toolchain.core.types import IntegerCoverage, Interval, Precision, Preprocessing

SCHEMA = 2
PLAIN_SCHEMA = 1  # of a manifest whose images are only stretched
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The canonical model."""

    __pydantic_config__ = STRICT
    files: tuple[str, ...]  # the runtime opens the first; the others belong to it
    sha256: Mapping[str, str]
    size_bytes: int
    macs: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output. Shapes are static; layouts are NCHW or NHWC."""

    __pydantic_config__ = STRICT
    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""


@dataclass(frozen=True, kw_only=True)
class ManifestPreprocessing(Preprocessing):
    """From a decoded image to the input, with resizing and scaling in words for a port to another language."""

    __pydantic_config__ = STRICT
    resize: str
    scale: str


@dataclass(frozen=True, kw_only=True)
class GoldenOutputs:
    """Golden inputs with the logits that a board must reproduce."""

    __pydantic_config__ = STRICT
    file: str
    step: float  # quantization step of the logits
    tolerance_steps: float  # largest difference allowed, in quantization steps


@dataclass(frozen=True, kw_only=True)
class PackagedForm:
    """The model in a further form, and how far its logits are from the canonical model's."""

    __pydantic_config__ = STRICT
    form: str
    files: tuple[str, ...]
    sha256: Mapping[str, str]
    deterministic: bool  # whether another build gives the same bytes
    bound_to: Mapping[str, str] = field(default_factory=dict)  # the exact runtime version and instructions it needs
    input: TensorSpec | None = None  # None: the same as the canonical model's
    images: int  # that both were compared on
    top1_agreement: float  # share of the images with the same predicted class
    max_steps: float  # largest difference of the logits, in quantization steps


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Pretrained weights, data, seed, lock and library versions that the model was made from."""

    __pydantic_config__ = STRICT
    model: Mapping[str, Any]
    reuse: Mapping[str, str] = field(
        default_factory=dict
    )  # of the pretrained blocks: keep, freeze, fresh (see ReuseSpec)
    weights: str
    weights_sha256: str
    weights_licence: str = ""
    data_digest: str
    calibration_digest: str
    data_licence: str
    seed: int
    lock: str = ""  # digest of the pruning plan and the Q/DQ placement
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is known about a bundle, except what changes from day to day, such as latencies."""

    __pydantic_config__ = STRICT
    schema: Literal[1, 2]
    release: int = 0  # counted up by whoever ships; a board refuses an older one
    recipe: str
    target: str
    variant: str
    precision: Precision
    precision_hint: str
    runtime: str
    runtime_version: Mapping[str, str]  # that it was built and verified with
    runtime_least: str = ""  # oldest version that can read the model; "": not known
    threads: int
    isa: str  # vector instructions of the machine that built it
    target_isa: str
    model: ModelFiles
    input: TensorSpec
    output: TensorSpec
    preprocess: ManifestPreprocessing
    classes: tuple[str, ...]
    scheme: QuantScheme | None
    placement: Mapping[str, Any]
    coverage: IntegerCoverage | None  # None: not run on a machine with the target's instructions
    accuracy: Mapping[str, Interval | str | None]  # "accuracy", "balanced", and the "split" they were measured on
    accuracy_drop: Mapping[str, Any]
    golden: GoldenOutputs
    accepted: bool = True  # false: missed a budget; run.py asks for --not-accepted, and nothing signs or packages it
    forms: tuple[PackagedForm, ...] = ()
    watch: str = ""  # file with the drift reference of `run.py --watch`
    provenance: Provenance


def parse(content: Any, where: Path) -> Manifest:
    """Turn a manifest's JSON into a checked value.

    Args:
        where: the bundle, for messages.

    Raises:
        ToolchainError: it has another schema, or a key is missing, unknown or of the wrong type.
    """
    check_schema(content, where)
    manifest: Manifest = read_config.to_dataclass(Manifest, content, f"{where}: the manifest is not valid")
    return manifest


def check_schema(content: Any, where: Path) -> None:
    """Check that a manifest has the schema that this version reads.

    Raises:
        ToolchainError: it has another schema.
    """
    given = content.get("schema") if isinstance(content, dict) else None
    if type(given) is not int or not PLAIN_SCHEMA <= given <= SCHEMA:
        newer = "; a newer toolchain wrote it: upgrade this one" if isinstance(given, int) and given > SCHEMA else ""
        raise ToolchainError(
            f"{where}: manifest schema {given!r}; this version reads {PLAIN_SCHEMA} to {SCHEMA}{newer}"
        )
