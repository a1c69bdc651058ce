"""Every value that flows between the stages, frozen, with its units in the field names.

Standard library only: this is the room everybody may import, so it must cost nothing. `spec.py` fills the
first half from TOML files and checks them there; the second half is what the stages hand to one another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from toolchain.allowances import Allowance
from toolchain.packaging import Packaging
from toolchain.reuse import Reuse

STRICT = {"extra": "forbid"}  # read by pydantic in spec.py: an unknown key in a file is an error

Mode = Literal["gray", "rgb"]
Kind = Literal["photo", "overhead", "thermal", "text"]
Outcome = Literal["pass", "fail", "cannot_tell", "not_measured"]
Precision = Literal["f32", "bf16", "int8"]
Architecture = Literal["dense", "pruned"]
Isa = Literal["x86-64-vnni", "x86-64-avx2", "arm64"]  # how a core multiplies integers
Calibration = Literal["minmax", "percentile", "mse"]  # how a range is drawn from the values seen
Correction = Literal["none", "bias", "norm"]  # of what rounding shifts: means of layers' outputs, and spreads too
LayerKind = Literal["depthwise", "grouped", "pointwise", "spatial", "linear"]
Operation = Literal["add", "multiply", "average", "concatenate", "activation"]  # beside the layers


# --- what the user writes -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A torchvision classification builder, where its weights come from, and the pixels those weights expect."""

    __pydantic_config__ = STRICT
    name: str
    weights: str = ""  # "" random | "DEFAULT" or another torchvision enum | "zoo:<name>" | a local file
    arguments: Mapping[str, int | float | bool | str] = field(default_factory=dict)  # for the builder: width_mult, ...
    norm_eps: float | None = None  # None: the builder's own
    padding: Literal["torch", "tensorflow"] = "torch"  # of strided convolutions, as where the weights were trained
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    licence: str = field(default="", compare=False)  # of the weights, for the bundle's papers


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How one stage trains. `epochs = 0` leaves the weights as they are."""

    __pydantic_config__ = STRICT
    epochs: int = 10
    least_steps: int = 0  # more epochs where a small set would otherwise train for fewer steps (adapt only)
    batch_size: int = 64
    learning_rate: float = 2e-3  # the peak of the schedule
    weight_decay: float = 0.05
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.2  # share of the steps that the learning rate rises (one-cycle only)
    label_smoothing: float = 0.0
    head_start: Literal["random", "probe"] = "random"  # "probe": the new head starts as a linear probe (adapt only)
    freeze_epochs: int = 0  # first epochs in which only the new head learns
    freeze_norm: bool = False  # batch norm keeps statistics that a few images cannot replace (adapt only)
    layer_decay: float = 1.0  # learning rate of each block, as a share of the next one's towards the head
    patience: int = 0  # epochs without a better validation accuracy before stopping; 0: run them all
    temperature: float = 2.0  # of the distillation; used where there is a teacher
    distill: float = 0.0  # weight of the teacher's soft labels, 0..1
    average: float = 0.0  # decay of the running average of the weights per step; 0: none
    max_grad_norm: float = 5.0


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Random changes to training images; shares of the size, degrees, and whether a mirror image is still the same class.

    None: not asked for, so it is off, or what `auto` chooses.
    """

    __pydantic_config__ = STRICT
    auto: bool = False  # whatever is not given here is chosen by the domain's kind and the number of images
    horizontal_flip: bool | None = None
    vertical_flip: bool | None = None
    shift: float | None = None  # largest shift, share of the side
    scale: float | None = None  # largest zoom in or out, share
    crop: float | None = None  # largest share of the area that a random crop leaves out
    rotate_degrees: float | None = None
    brightness: float | None = None  # largest relative change; also contrast
    saturation: float | None = None  # largest relative change of colour
    erase: float | None = None  # probability that a rectangle is blanked
    mixup: float | None = None  # parameter of the beta distribution that two images are blended by; 0: none
    cutmix: float | None = None  # the same for a pasted rectangle


@dataclass(frozen=True, kw_only=True)
class JoinSpec:
    """A further set whose training images are mixed in, if they help on the domain's own validation images."""

    __pydantic_config__ = STRICT
    domain: str  # by name
    path: str = ""  # of its folder, where the domain does not say
    labels: Mapping[str, str] = field(default_factory=dict)  # its class -> this domain's; equal names need no entry
    others: Literal["fail", "drop"] = "fail"  # classes of it that mean nothing here
    weight: float = 1.0  # of each of its images in the loss; an own image counts 1
    images: int = 0  # at most so many, drawn class by class; 0: all


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """Which share of the multiply-accumulates goes, and by which criterion the channels are ranked."""

    __pydantic_config__ = STRICT
    ratio: float | None = None  # of the multiply-accumulates to remove, 0 for none; None: as the budget says, else half
    criterion: str = "fisher"  # why: docs/results.md, criteria at one budget
    ranking: Literal["global", "isomorphic"] = "global"  # importance as a share of its group, or of all groups alike
    protect: tuple[str, ...] = ()  # module name patterns (fnmatch) that keep every channel
    depth: bool = True  # whole residual blocks may go, where a budget is searched for
    max_share: float = 0.75  # no layer loses more than this share of its channels
    resolution: float = 1.0  # least share of the pictures' height and width that a budget may be met with; 1: keep them
    sensitivity: bool = field(default=True, compare=False)  # how much each layer minds, for the report; decides nothing
    rounds: int = 1  # of cutting part of the way and recovering; they share recover.epochs
    sparsity: float = 0.0  # of a penalty that shrinks unimportant channels before any are cut; 0: none
    sparse_epochs: int | None = None  # of training with it; None: half as many as recover.epochs


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """How a model is quantized: what runs in integers, calibration, then quantization-aware training."""

    __pydantic_config__ = STRICT
    method: Literal["qat", "ptq"] = "qat"  # "ptq": calibration is all, for those who cannot train
    calibration: Calibration | Literal["auto"] = "auto"  # of activation ranges; "auto": the best on validation
    correction: Correction | Literal["auto"] = "auto"  # of what rounding shifts; "auto": the best on validation
    search_seconds: float = 90.0  # longest search for the fastest placement, a model; 0: the usual one, untimed
    train: TrainSpec = field(default_factory=lambda: TrainSpec(epochs=3, learning_rate=2e-4, distill=0.5))
    float_modules: tuple[str, ...] = ()  # module names left in float, with all below them


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the shipped model must keep to. Fractions: 0.01 = 1 point. None: not asked for."""

    __pydantic_config__ = STRICT
    accuracy_drop: float | None = None
    balanced_drop: float | None = None
    speedup: float | None = None  # at least this much faster than dense-fp32 in the same runtime
    size_bytes: int | None = None
    size: str | None = None  # of the model files, at most; "0.5x" of the dense model as it would ship, or "1.2 MB"
    latency: str | None = None  # the same, or "1.2 ms"; pruning goes that far
    macs: str | None = None  # of the pruned model, at most; "0.5x" of the dense one, or "150M"
    parameters: str | None = None  # the same, "0.5x" or "2.5M"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One job: which model, which domain, how to train, prune and quantize."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    domain: str
    model: ModelSpec
    reuse: Reuse | Literal["auto"] = field(default_factory=Reuse)  # of the pretrained network; "auto": as it is advised
    release: int = field(default=0, compare=False)  # counted up by whoever ships; boards refuse to go back
    seed: int = 0
    seeds: int = 1  # how often adapt is repeated, with the next seeds; the best on validation goes on
    balance: float = 0.0  # what to aim at: 0 accuracy, 1 balanced accuracy (every class counts the same), or between
    image_size: tuple[int, int] | None = None  # height, width; None: the domain's
    teacher: ModelSpec | None = None  # a larger model that adapt learns from; fine-tuned first
    join: tuple[JoinSpec, ...] = ()
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    adapt: TrainSpec = field(default_factory=TrainSpec)
    prune: PruneSpec = field(default_factory=PruneSpec)
    recover: TrainSpec = field(default_factory=lambda: TrainSpec(learning_rate=1e-3, distill=0.7))
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Integer types of the target's kernels. Weights are symmetric and per output channel."""

    __pydantic_config__ = STRICT
    activations: Literal["uint8", "int8"] = "uint8"
    weight_bits: Literal[7, 8] = 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """One deployment target."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    runtime: str
    threads: int = 1
    isa: Isa = "x86-64-vnni"
    fit_like: str = ""  # target whose placement is borrowed where this machine lacks `isa` and cannot measure one
    alignment: int = 16  # channel counts the kernels like
    precisions: tuple[Precision, ...] = ("f32", "int8")  # what may ship, and what is measured
    scheme: QuantScheme = field(default_factory=QuantScheme)
    budget: Budget = field(default_factory=Budget)
    package: Packaging = field(default_factory=Packaging, compare=False)
    gate: Allowance = field(default_factory=Allowance, compare=False)  # decides nothing that is made here
    device: str = field(default="", compare=False)  # board to time on, "ssh:user@host"; its name decides nothing


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One set of labelled images."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    source: str = "folder"  # "folder", or the name of a bundled source in data.py
    path: str = ""  # of the folder; relative to the working directory
    mode: Mode = "rgb"
    kind: Kind = "photo"  # decides which augmentation leaves a picture in its class
    image_size: tuple[int, int] = (224, 224)  # height, width
    classes: tuple[str, ...] = ()  # empty: the folder's sub-folders, sorted
    validation_share: float = 0.15  # used where the folder has no val/ of its own
    test_share: float = 0.2  # used where the folder has no test/ of its own
    split_seed: int = 0
    group_pattern: str = ""  # regular expression on file names; files that agree in its first group share a split
    calibration_images: int = 256
    calibration_seed: int = 0
    on_corrupt: Literal["fail", "skip"] = "fail"
    licence: str = ""


# --- what flows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a decoded picture to the network's input; carried unchanged into the manifest and the runner."""

    image_size: tuple[int, int]  # height, width
    mode: Mode
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model file (or the first of several that belong together) as a runtime takes it."""

    path: Path
    files: tuple[Path, ...]
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """Structured pruning as data: kept indices in the original numbering, replayed by slicing.

    `keep` maps a state-dict tensor to {dimension: kept indices}; `attributes` a module to integer overrides
    (channels, groups, heads); `dropped` names modules that become `nn.Identity`.
    """

    keep: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What runs in integers, by `nn.Module` name and kind of operation.

    Convolution and linear layers do, but for those in `float_modules` and below ("" is the whole model). `results`
    decides how: rounded right behind the layer, which ONNX Runtime needs for integer kernels, or only where an integer
    operation reads the value, which leaves the activation functions between them in float, as OpenVINO fuses them.
    """

    float_modules: tuple[str, ...] = ()
    float_operations: tuple[Operation, ...] = ("activation", "multiply")
    results: bool = True

    def covers(self, module: str) -> bool:
        """Whether operations inside `module` are quantized."""
        return not any(name in {"", module} or module.startswith(name + ".") for name in self.float_modules)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Size of one convolution or linear layer, for the width table and the multiply-accumulate count."""

    name: str
    kind: LayerKind
    inputs: int
    outputs: int
    sites: int  # of the output: height times width, times the tokens of a sequence
    macs: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the bounds of its 95 % interval and the number of samples behind it."""

    estimate: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model as a runtime runs it: dense or pruned, in one precision."""

    name: str  # "dense-fp32", "pruned-int8", ...
    family: Architecture
    precision: Precision
    method: Literal["", "ptq", "qat"]
    artefact: Artefact
    onnx: Path
    planned: tuple[str, ...]  # modules that are to run in integers
    image_size: tuple[int, int]  # of the input: height, width
    output_step: float | None  # quantization step of the logits; None: they are float
    macs: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What really ran in integers, as the runtime's own executed graph says."""

    integer: int
    planned: int
    total: int
    float_ops: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The artefact in its runtime against the torch model it came from, over the same images."""

    top1_agreement: float
    max_steps: float  # largest logit difference, in quantization steps of the output
    step: float  # that step; of a float output: the 255th part of its range
    images: int
    accuracy_gap: float  # artefact minus torch
    runtime_agreement: float | None = None  # the runtime's own optimized against unoptimized graph


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A variant's answers on the test split, from the original files through the bundle's own preprocessing."""

    accuracy: Interval
    balanced: Interval
    drop: Interval  # against dense-fp32, paired over the same images; positive is worse
    balanced_drop: Interval
    disagreement: float  # share of images on which exactly one of this and dense-fp32 is right
    parity: Parity
    coverage: Coverage | None  # None: this machine does not run the target's instructions


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A variant's latency from paired rounds, and its footprint from a process of its own."""

    latencies_ms: tuple[float, ...]  # every sample of every round
    p50_ms: Interval
    round_logs: Mapping[str, Sequence[float]]  # against each other variant: log of how many times faster, by round
    load_ms: float
    first_ms: float
    peak_rss_bytes: int
    peak_share: float | None  # of the multiply-accumulates a second that a large convolution reaches in the same rounds


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One question answered."""

    check: str
    outcome: Outcome
    measured: float | None
    limit: float | None
    why: str
