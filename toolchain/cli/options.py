"""Options that several verbs share, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Recipe by name, or path to a .toml file.")]
DomainName = Annotated[str, typer.Option(help="Domain instead of the recipe's: classes, splits, gray or rgb.")]
ModelName = Annotated[
    str,
    typer.Option(
        help="Model instead of the recipe's: of torchvision, such as resnet18, timm:<name>, or auto (export)."
    ),
]
Weights = Annotated[str, typer.Option(help="Checkpoint file, torchvision weights such as DEFAULT, or zoo:<name>.")]
Epochs = Annotated[int, typer.Option(help="Epochs of every training stage; 0 keeps the recipe's.", min=0)]
Seed = Annotated[int, typer.Option(help="Seed of every random choice; -1 keeps the recipe's.", min=-1)]
Seeds = Annotated[int, typer.Option(help="Repeat fine-tuning with so many seeds; 0 keeps the recipe's.", min=0)]
Balance = Annotated[float, typer.Option(help="Aim: 0 accuracy to 1 balanced accuracy; -1 keeps the recipe's.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for results and for the cache that lets runs resume.")]
DataFolder = Annotated[str, typer.Option(help="Folder of images: <class>/<image>, or train/ val/ test/ of those.")]
ImageSize = Annotated[str, typer.Option(help="Network input, HEIGHTxWIDTH, such as 120x72.")]
OnCorrupt = Annotated[str, typer.Option(help="What to do with unreadable images: fail or skip.")]
TargetName = Annotated[str, typer.Option("--target", "-t", help="Deployment target; `toolchain targets` lists them.")]
Board = Annotated[str, typer.Option(help="Board to time on, ssh:user@host[:port][#python]; without it, this machine.")]
BundleArchive = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's archive, such as out/digits/cpu/bundle.tar.")
]
