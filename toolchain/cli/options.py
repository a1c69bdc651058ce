"""Command-line options that several verbs share, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        help="Recipe: a name (`toolchain recipes` lists them) or a .toml file. Default: image-folder with --data, else digits.",
    ),
]
DomainName = Annotated[
    str,
    typer.Option(
        help="Dataset description (classes, splits, gray or rgb): a name from `toolchain domains`. Default: the recipe's."
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        help="Model: a torchvision name such as resnet18, timm:<name>, your own net.py:function, or (export only) auto."
    ),
]
Weights = Annotated[
    str,
    typer.Option(help="Pretrained weights: a checkpoint file, torchvision weights such as DEFAULT, or zoo:<name>."),
]
Epochs = Annotated[int, typer.Option(help="Epochs of every training stage; 0: as in the recipe.", min=0)]
Seed = Annotated[int, typer.Option(help="Seed of all random choices; -1: as in the recipe.", min=-1)]
Seeds = Annotated[int, typer.Option(help="Number of seeds to fine-tune with; 0: as in the recipe.", min=0)]
Balance = Annotated[
    float,
    typer.Option(help="What training optimizes, from 0 (accuracy) to 1 (balanced accuracy); -1: as in the recipe."),
]
OutFolder = Annotated[
    Path, typer.Option("--out", help="Folder for results and for the stage cache, which resumes runs.")
]
DataFolder = Annotated[
    str,
    typer.Option(
        help="Images: a folder of <class>/<image> or train/, val/, test/ of those; a CSV (file,label); other formats: docs/data.md."
    ),
]
ImageSize = Annotated[str, typer.Option(help="Input size of the network as HEIGHTxWIDTH, such as 120x72.")]
OnCorrupt = Annotated[str, typer.Option(help="What to do with unreadable images: fail or skip.")]
TargetName = Annotated[str, typer.Option("--target", "-t", help="Deployment target; `toolchain targets` lists them.")]
Board = Annotated[
    str, typer.Option(help="Board to measure latency on: ssh:user@host[:port]\\[#python]. Default: this machine.")
]
BundleArchive = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Archive of a bundle, such as out/digits/cpu/bundle.tar.")
]
