"""Images without labels: all image files below a folder, for distillation beside a labelled dataset or in its place."""

from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.folder_layout import LINKED_LEVELS, WHOLE, describe_missing_images
from toolchain.data.formats.folders.image_formats import is_readable
from toolchain.data.formats.folders.system_files import walk_linked_files
from toolchain.data.labelled_files import LabelledFiles

FEWEST_IMAGES = 20  # in place of labelled ones: they are split into training, validation and test


def list_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted.

    Raises:
        ToolchainError: it does not exist, is a file, or holds no images.
    """
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ToolchainError(
            f"the folder of images without labels {folder} {problem}; give one with --unlabelled FOLDER"
        )
    paths = sorted(path for path in walk_linked_files(folder, LINKED_LEVELS) if is_readable(path) and path.is_file())
    if not paths:
        raise ToolchainError(describe_missing_images(folder))
    return paths


def read(domain: Domain) -> LabelledFiles:
    """List the images that take the place of labelled ones; all of them stand under the first class until a model labels them.

    Raises:
        ToolchainError: as `list_files`; or there are fewer than FEWEST_IMAGES.
    """
    folder = Path(domain.unlabelled)
    paths = list_files(folder)
    if len(paths) < FEWEST_IMAGES:
        raise ToolchainError(
            f"{folder} holds {len(paths)} images; in place of labelled ones at least {FEWEST_IMAGES} are needed, for training, "
            "validation and test"
        )
    first_class = next(iter(domain.classes), "")
    return LabelledFiles(
        path=folder, root=folder, title="images without labels", classes=domain.classes or (first_class,),
        images={WHOLE: {first_class: paths}},
    )  # fmt: skip
