"""Recipe: carried out of a larger module; to be described."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

STRICT = {"extra": "forbid"}  # read by pydantic in spec.py: an unknown key in a file is an error
CalibrationMethod = Literal["minmax", "percentile", "mse"]  # how a range is drawn from the values seen
CorrectionMethod = Literal["none", "bias", "norm"]  # of what rounding shifts: means of layers' outputs, and spreads too


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
    calibration: CalibrationMethod | Literal["auto"] = "auto"  # of activation ranges; "auto": the best on validation
    correction: CorrectionMethod | Literal["auto"] = "auto"  # of what rounding shifts; "auto": the best on validation
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
class ReuseSpec:
    """Each names a block as `toolchain select` lists them (`features.7`, `layer3.1`); "": not asked for."""

    __pydantic_config__ = {"extra": "forbid"}
    keep: str = ""  # the last block that is kept; a linear head follows it
    freeze: str = ""  # the last block whose weights stay as they are while fine-tuning
    fresh: str = ""  # the first block that starts anew; the first of all: only the architecture is taken over


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One job: which model, which domain, how to train, prune and quantize."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    domain: str
    model: ModelSpec
    reuse: ReuseSpec | Literal["auto"] = field(
        default_factory=ReuseSpec
    )  # of the pretrained network; "auto": as it is advised
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
