"""The manifest of a bundle: what it holds, what it answers, what it was made of, as one checked value.

It is an interface: boards, pipelines and other languages read it. `toolchain schema manifest` prints its JSON schema.
Keys are added where the schema number stays; it changes where one takes another meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from toolchain.config import toml_files
from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError
from toolchain.core.types import IntegerCoverage, Interval, Precision, Preprocessing

SCHEMA = 1
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The canonical model."""

    __pydantic_config__ = STRICT
    files: tuple[str, ...]  # the first is opened, the others belong to it
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
    """From a decoded picture to the input, in words for those who write it in another language."""

    __pydantic_config__ = STRICT
    resize: str
    scale: str


@dataclass(frozen=True, kw_only=True)
class GoldenOutputs:
    """Inputs with the answers that a board must give again."""

    __pydantic_config__ = STRICT
    file: str
    step: float  # quantization step of the logits
    tolerance_steps: float


@dataclass(frozen=True, kw_only=True)
class PackagedForm:
    """The model once more in another form, and how far its answers are from the canonical one's."""

    __pydantic_config__ = STRICT
    form: str
    files: tuple[str, ...]
    sha256: Mapping[str, str]
    deterministic: bool  # whether another build gives the same bytes
    bound_to: Mapping[str, str] = field(default_factory=dict)  # runtime version and instructions that it needs exactly
    input: TensorSpec | None = None  # where it is not the canonical one
    images: int  # that both were asked
    top1_agreement: float
    max_steps: float


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the model was made of."""

    __pydantic_config__ = STRICT
    model: Mapping[str, Any]
    reuse: Mapping[str, str] = field(default_factory=dict)  # blocks: kept up to, frozen up to, fresh from
    weights: str
    weights_sha256: str
    weights_licence: str = ""
    data_digest: str
    calibration_digest: str
    data_licence: str
    seed: int
    lock: str = ""  # digest of what was cut and what runs in integers
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is known of a bundle; nothing in it depends on the day."""

    __pydantic_config__ = STRICT
    schema: Literal[1]
    release: int = 0  # counted by its makers; a board refuses to go back
    recipe: str
    target: str
    variant: str
    precision: Precision
    precision_hint: str
    runtime: str
    runtime_version: Mapping[str, str]  # that it was built and checked with
    runtime_least: str = ""  # that can read the model; "" where nothing is known
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
    coverage: IntegerCoverage | None  # None: nobody has run it on a machine of its kind
    accuracy: Mapping[str, Interval | str | None]  # "accuracy", "balanced", and the "split" they were measured on
    accuracy_drop: Mapping[str, Any]
    golden: GoldenOutputs
    forms: tuple[PackagedForm, ...] = ()
    watch: str = ""  # file with what `run.py --watch` compares to
    provenance: Provenance


def parse(content: Any, where: Path) -> Manifest:
    """A manifest as it was read from JSON.

    Raises:
        ToolchainError: of another schema, or not as this one is.
    """
    check_schema(content, where)
    found: Manifest = toml_files.to_dataclass(
        Manifest, content, f"{where}: the manifest is not one that this toolchain wrote"
    )
    return found


def check_schema(content: Any, where: Path) -> None:
    """Makes sure that a manifest is of the schema that this version reads.

    Raises:
        ToolchainError: it is of another.
    """
    given = content.get("schema") if isinstance(content, dict) else None
    if given != SCHEMA:
        newer = "; a newer toolchain wrote it: upgrade" if isinstance(given, int) and given > SCHEMA else ""
        raise ToolchainError(f"{where}: manifest schema {given!r}; this version reads {SCHEMA}{newer}")
