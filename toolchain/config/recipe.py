"""The recipe that a user writes (`recipes/*.toml`): model, dataset, training, pruning, quantization and budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from toolchain.core.types import ADDED_LATER, ChannelOrder, Interpolation

STRICT = {"extra": "forbid"}  # for pydantic in read_config.py: an unknown key in a file is an error
CalibrationMethod = Literal["minmax", "percentile", "mse"]  # how a range is computed from the observed values
CorrectionMethod = Literal["none", "bias", "norm"]  # of layer outputs shifted by rounding: their means, or also spreads


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model builder, where its weights come from, and the normalisation that the weights expect."""

    __pydantic_config__ = STRICT
    # of torchvision, "timm:<name>", a function of the user's ("net.py:build", "package.module:build"), or an ONNX file
    name: str
    # "" random, or as the user's function builds it | "DEFAULT" or another torchvision enum | "zoo:<name>" | a local file
    weights: str = ""
    arguments: Mapping[str, int | float | bool | str] = field(default_factory=dict)  # for the builder: width_mult, ...
    norm_eps: float | None = None  # epsilon of batch norm; None: the builder's
    padding: Literal["torch", "tensorflow"] = "torch"  # of strided convolutions, as the weights were trained with
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels in `pixel_values`, in `order`
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    # "keep": the model is trained already; its head gives the classes in the order of `labels`
    head: Literal["new", "keep"] = field(default="new", metadata=ADDED_LATER)
    labels: str = field(default="", metadata=ADDED_LATER)  # text file with a class name a line, in the head's order
    # the range that mean and std are given in; read as 0..1
    pixel_values: Literal["0..1", "0..255"] = field(default="0..1", metadata=ADDED_LATER)
    order: ChannelOrder = field(default="rgb", metadata=ADDED_LATER)  # of the channels that the network expects
    # how an image becomes as large as the input; "weights": as the published weights were validated
    resize: Literal["stretch", "crop", "letterbox", "weights"] = field(default="stretch", metadata=ADDED_LATER)
    crop_share: float | None = field(default=None, metadata=ADDED_LATER)  # input / resized shorter side; None: 0.875
    # grey level, or red, green, blue, of the bars of a letterbox; None: 114
    fill: int | tuple[int, int, int] | None = field(default=None, metadata=ADDED_LATER)
    # None: bilinear, or as the published weights have it
    interpolation: Interpolation | None = field(default=None, metadata=ADDED_LATER)
    antialias: bool | None = field(default=None, metadata=ADDED_LATER)  # None: yes
    # take mean, std and interpolation from published weights; None: where neither mean nor std is given
    published: bool | None = field(default=None, compare=False)
    licence: str = field(default="", compare=False)  # of the weights, for the manifest, LICENCES.md and the SBOM


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How one stage trains. `epochs = 0` leaves the weights unchanged."""

    __pydantic_config__ = STRICT
    epochs: int = 10
    least_steps: int = 0  # train more epochs if a small dataset would give fewer steps than this (adapt only)
    batch_size: int = 64
    learning_rate: float = 2e-3  # the peak of the schedule
    weight_decay: float = 0.05
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.2  # share of the steps during which the learning rate rises (one-cycle only)
    label_smoothing: float = 0.0
    head_start: Literal["random", "probe"] = "random"  # "probe": the new head starts as a linear probe (adapt only)
    freeze_epochs: int = 0  # first epochs, in which only the new head is trained
    freeze_norm: bool = False  # keep the pretrained statistics of batch norm, for few images (adapt only)
    layer_decay: float = 1.0  # learning rate of each block, as a share of the next one's towards the head
    patience: int = 0  # stop after so many epochs without a better validation accuracy; 0: run all epochs
    temperature: float = 2.0  # of distillation, with a teacher
    distill: float = 0.0  # weight of the teacher's soft labels, 0..1
    average: float = 0.0  # decay per step of the moving average of the weights; 0: none
    max_grad_norm: float = 5.0


@dataclass(frozen=True, kw_only=True)
class QuantizeTrainSpec(TrainSpec):
    """Quantization-aware training: its default rate fine-tunes; that of other stages would wreck a calibrated model."""

    learning_rate: float = 2e-4


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Random augmentation of training images. None: off, or with `auto` whatever it chooses."""

    __pydantic_config__ = STRICT
    auto: bool = False  # choose what is not given here by the domain's kind and the number of images
    horizontal_flip: bool | None = None
    vertical_flip: bool | None = None
    shift: float | None = None  # largest shift, as a share of the side
    scale: float | None = None  # largest zoom in or out, as a share
    crop: float | None = None  # largest share of the area that a random crop leaves out
    rotate_degrees: float | None = None
    brightness: float | None = None  # largest relative change of brightness and of contrast
    saturation: float | None = None  # largest relative change
    erase: float | None = None  # probability that a rectangle is erased
    mixup: float | None = None  # parameter of the beta distribution of the mixing weight; 0: none
    cutmix: float | None = None  # the same for the area of the pasted rectangle


@dataclass(frozen=True, kw_only=True)
class JoinSpec:
    """Another dataset whose training images are added, if they improve accuracy on the recipe's own validation split."""

    __pydantic_config__ = STRICT
    domain: str  # by name
    path: str = ""  # of its folder, if the domain does not name one
    labels: Mapping[str, str] = field(
        default_factory=dict
    )  # its class -> the recipe's class; equal names need no entry
    others: Literal["fail", "drop"] = "fail"  # what to do with its classes that the recipe's dataset does not have
    weight: float = 1.0  # of each of its images in the loss; images of the recipe's dataset have weight 1
    images: int = 0  # at most so many, drawn class by class; 0: all


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """How much to prune, and by which criterion channels are ranked."""

    __pydantic_config__ = STRICT
    ratio: float | None = (
        None  # share of multiply-accumulates to remove, 0 for none; None: as the budget says, else half
    )
    criterion: str = "fisher"  # chosen by the comparison in docs/results.md, criteria at one budget
    ranking: Literal["global", "isomorphic"] = "global"  # normalise importance in each group, or over all groups alike
    protect: tuple[str, ...] = ()  # patterns of module names (fnmatch) that keep all channels
    depth: bool = True  # the search for a budget may remove whole residual blocks
    max_share: float = 0.75  # largest share of its channels that a layer may lose
    resolution: float = 1.0  # smallest share of the input height and width that the search may use; 1: keep the size
    sensitivity: bool = field(default=True, compare=False)  # measure each layer's sensitivity, for the report only
    rounds: int = 1  # of pruning a part and recovering; they share recover.epochs
    sparsity: float = 0.0  # strength of a penalty that shrinks unimportant channels before pruning; 0: none
    sparse_epochs: int | None = None  # of training with the penalty; None: half of recover.epochs


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """How a model is quantized: Q/DQ placement, calibration, then quantization-aware training."""

    __pydantic_config__ = STRICT
    method: Literal["qat", "ptq"] = "qat"  # "ptq": calibration without training
    calibration: CalibrationMethod | Literal["auto"] = "auto"  # of activation ranges; "auto": the best on validation
    correction: CorrectionMethod | Literal["auto"] = "auto"  # of shifted outputs; "auto": the best on validation
    search_seconds: float = 90.0  # longest placement search for one model; 0: the default placement, untimed
    train: QuantizeTrainSpec = field(default_factory=lambda: QuantizeTrainSpec(epochs=3, distill=0.5))
    float_modules: tuple[str, ...] = ()  # names of modules left in float, with all modules inside them


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that the shipped model must meet. Drops are fractions: 0.01 = 1 point. None: no limit."""

    __pydantic_config__ = STRICT
    accuracy_drop: float | None = None  # at most, against dense-fp32
    balanced_drop: float | None = None  # the same for balanced accuracy
    speedup: float | None = None  # at least, over dense-fp32 in the same runtime
    size_bytes: int | None = None  # of the model files, at most
    size: str | None = None  # the same as text: "0.5x" of the dense model, quantized as it would ship, or "1.2 MB"
    latency: str | None = None  # at most: "0.5x" as for size, or "1.2 ms"; the model is pruned until it is met
    macs: str | None = None  # of the pruned model, at most: "0.5x" of the dense model, or "150M"
    parameters: str | None = None  # of the pruned model, at most: "0.5x" of the dense model, or "2.5M"
    dense_float: bool | None = None  # whether the dense float model may ship where nothing smaller keeps the budget


@dataclass(frozen=True, kw_only=True)
class ReuseSpec:
    """How much of a pretrained network to reuse, by the block names of `toolchain select` (`features.7`, `layer3.1`).

    "": no limit.
    """

    __pydantic_config__ = {"extra": "forbid"}
    keep: str = ""  # the last block that is kept; a linear head follows it
    freeze: str = ""  # the last block whose weights are frozen during fine-tuning
    fresh: str = (
        ""  # the first block with random weights; if it is the network's first, only the architecture is reused
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which model on which dataset, and how to train, prune and quantize it."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    domain: str
    model: ModelSpec
    # of the pretrained network; "auto": as `toolchain select --layers` advises
    reuse: ReuseSpec | Literal["auto"] = field(default_factory=ReuseSpec)
    release: int = field(default=0, compare=False)  # counted up by whoever ships; a board refuses an older one
    seed: int = 0
    seeds: int = 1  # number of fine-tuning runs, with consecutive seeds; the best on validation is used
    balance: float = 0.0  # what to optimize: 0 accuracy, 1 balanced accuracy (all classes weighted equally), or between
    image_size: tuple[int, int] | None = None  # height, width; None: the domain's
    teacher: ModelSpec | None = None  # a larger model that adapt learns from; fine-tuned first
    join: tuple[JoinSpec, ...] = ()
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    adapt: TrainSpec = field(default_factory=TrainSpec)
    prune: PruneSpec = field(default_factory=PruneSpec)
    recover: TrainSpec = field(default_factory=lambda: TrainSpec(learning_rate=1e-3, distill=0.7))
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    budget: Budget = field(default_factory=Budget)
