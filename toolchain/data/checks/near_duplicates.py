"""Find near-duplicates: images that were scaled, encoded again, brightened or mirrored, or taken twice of one scene.

Gray thumbnails of 16x16 pixels, without their mean and contrast, are whitened over the dataset: what all images share
(a module's grid of cells, a table's edge) no longer counts, and what tells them apart does. Then all pairs are
compared, each also mirrored, by blockwise matrix products. A pair is a near-duplicate if its images are far more alike
than either of them and its tenth neighbour, and if the finer thumbnails and the colours agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from toolchain.core import progress
from toolchain.data.checks.thumbnails import THUMBNAIL_SIDE, ImageInfo

COARSE_SIDE = 16  # pixels
# of the covariance towards a multiple of the identity with its mean variance; 0.1 amplifies JPEG's noise, 3 hides details
SHRINKAGE = 1.0
REFERENCE_NEIGHBOUR = 10
# Chosen by looking at every pair of two datasets. Distances are relative to the distance to the tenth neighbour. Among
# 20,000 thermal images of solar modules, which all look alike: four images encoded again at 0.03 to 0.11, then modules
# seen twice in one flight from 0.27 on. Among 977 photos of waste: five objects photographed twice at 0.09 to 0.22,
# then merely similar ones from 0.45 on. Photos that were halved, encoded at quality 50 and brightened by a fifth stay
# below 0.25.
MAX_DISTANCE_RATIO = 0.25
# In a dataset full of duplicates the tenth neighbours are duplicates, too; so pairs that agree this well need no
# comparison. The most similar pair of solar modules that is not a duplicate reaches 0.988.
CERTAIN_SIMILARITY = 0.995
# below it MAX_DISTANCE_RATIO cannot hold, as the similarity to a tenth neighbour is hardly below -0.2
MIN_SIMILARITY = 1 - 1.2 * MAX_DISTANCE_RATIO**2
# correlation of 32x32 thumbnails after subtraction of each pixel's neighbourhood mean; the duplicates above: from 0.93 on
MIN_DETAIL_CORRELATION = 0.8
MIN_CONTRAST = 0.5  # standard deviation in gray levels; below it, an image shows nothing that could be compared
MAX_TINT_DIFFERENCE = 6.0  # levels of 255 by which the tints of duplicates may differ, plus a share of their strength
MAX_TINT_DIFFERENCE_SHARE = 0.25
MAX_IMAGES = 60_000  # of more, a random sample is searched, as the time grows with the square
MAX_PAIRS = 1_000_000
BLOCK_ROWS = 1024
MIRRORS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda images: images,
    lambda images: images[:, :, ::-1],
    lambda images: images[:, ::-1],
    lambda images: images[:, ::-1, ::-1],
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SimilaritySearch:
    """Which images were compared, and the near-duplicates. Indices are those of the images given to `search`."""

    searched_rows: np.ndarray  # int64 [searched]
    vectors: np.ndarray  # float32 [searched, 256]: whitened, of length 1; their dot product is the similarity
    pairs: tuple[tuple[int, int, bool], ...]  # two indices, and whether one image is mirrored
    complete: bool  # False: only a sample was searched, or there were too many similar pairs to compare them all


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Candidate pairs, all arrays of length [pairs]."""

    left: np.ndarray  # index of the image that comes first
    right: np.ndarray
    mirror: np.ndarray  # index into MIRRORS, of the right image
    similarity: np.ndarray

    def select(self, mask: np.ndarray) -> "_Pairs":
        """Return the pairs where a bool array [pairs] is True."""
        return _Pairs(self.left[mask], self.right[mask], self.mirror[mask], self.similarity[mask])


def search(images: Sequence[ImageInfo]) -> SimilaritySearch:
    """Find near-duplicate pairs among images with different pixels; all of them must be readable."""
    thumbnails = [image.gray_thumbnail for image in images if image.gray_thumbnail is not None]
    if not thumbnails:
        return _nothing_to_search(np.arange(0))
    gray = np.stack(thumbnails)
    rows = np.flatnonzero(gray.astype(np.float32).std((1, 2)) > MIN_CONTRAST)
    if not len(rows):
        return _nothing_to_search(rows)
    all_images = len(rows) <= MAX_IMAGES
    if not all_images:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_IMAGES])
    gray = gray[rows]
    views = whiten(gray)
    pairs = _find_candidates(views)
    complete = all_images and len(pairs.left) < MAX_PAIRS
    pairs = _keep_closest(pairs, views[0])
    pairs = pairs.select(_details_agree(pairs, gray))
    pairs = pairs.select(_tints_agree(pairs, gray, [images[int(row)] for row in rows]))
    indices = zip(rows[pairs.left], rows[pairs.right], pairs.mirror > 0, strict=True)
    return SimilaritySearch(
        searched_rows=rows,
        vectors=views[0],
        pairs=tuple((int(left), int(right), bool(mirrored)) for left, right, mirrored in indices),
        complete=complete,
    )


def _nothing_to_search(rows: np.ndarray) -> SimilaritySearch:
    return SimilaritySearch(
        searched_rows=rows, vectors=np.zeros((0, COARSE_SIDE**2), np.float32), pairs=(), complete=True
    )


def whiten(gray: np.ndarray) -> list[np.ndarray]:
    """Whiten thumbnails over the dataset, as they are and mirrored in three ways.

    The mean and the covariance are those of all four views together, so that an image and its mirror image are treated
    alike, whichever comes first.

    Args:
        gray: thumbnails [images, 32, 32].

    Returns:
        One array for each of MIRRORS: float32 [images, 256], vectors of length 1.
    """
    step = THUMBNAIL_SIDE // COARSE_SIDE
    coarse = gray.astype(np.float32).reshape(-1, COARSE_SIDE, step, COARSE_SIDE, step).mean((2, 4))
    views = [_normalise_rows(mirror(coarse).reshape(len(coarse), -1), centre=True) for mirror in MIRRORS]
    mean = np.mean([view.mean(0) for view in views], axis=0)
    covariance = np.mean([(view - mean).T @ (view - mean) / len(view) for view in views], axis=0)
    sphere = SHRINKAGE * max(float(np.trace(covariance)) / len(covariance), 1e-12) * np.eye(len(covariance))
    root = np.linalg.cholesky(covariance + sphere)  # any root of the inverse gives the same products
    matrix = np.linalg.inv(root).T.astype(np.float32)
    return [_normalise_rows((view - mean) @ matrix) for view in views]


def _normalise_rows(rows: np.ndarray, *, centre: bool = False) -> np.ndarray:
    """Scale rows to length 1, after subtracting the mean of each with `centre`."""
    rows = rows - rows.mean(1, keepdims=True) if centre else rows
    normalised: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return normalised


def _find_candidates(views: Sequence[np.ndarray]) -> _Pairs:
    """Return all pairs above MIN_SIMILARITY, each once, with the earlier image upright; stop after MAX_PAIRS."""
    upright, count = views[0], 0
    blocks = [_Pairs(*(np.zeros(0, dtype) for dtype in (int, int, int, np.float32)))]
    with progress.show_bar("compare images", len(upright)) as bar:
        for start in range(0, len(upright), BLOCK_ROWS):
            block = upright[start : start + BLOCK_ROWS]
            for mirror, view in enumerate(views):
                similarity = block @ view[start:].T
                left, right = np.nonzero(np.triu(similarity > MIN_SIMILARITY, 1))
                blocks.append(_Pairs(left + start, right + start, np.full(len(left), mirror), similarity[left, right]))
                count += len(left)
            bar.step(count=len(block))
            if count >= MAX_PAIRS:
                break
    return _Pairs(
        *(
            np.concatenate([getattr(block, name) for block in blocks])
            for name in ("left", "right", "mirror", "similarity")
        )
    )


def _keep_closest(pairs: _Pairs, upright: np.ndarray) -> _Pairs:
    """Keep the pairs that are much closer than either image and its tenth neighbour."""
    rows = np.unique(np.concatenate([pairs.left, pairs.right]))
    neighbour_similarity = np.zeros(len(upright), np.float32)
    rank = min(REFERENCE_NEIGHBOUR + 1, len(upright))  # an image is its own nearest neighbour
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        neighbour_similarity[block] = np.partition(upright[block] @ upright.T, -rank, axis=1)[:, -rank]
    neighbour_distance = 1 - np.maximum(neighbour_similarity[pairs.left], neighbour_similarity[pairs.right])
    close = 1 - pairs.similarity <= MAX_DISTANCE_RATIO**2 * neighbour_distance
    return pairs.select((pairs.similarity >= CERTAIN_SIMILARITY) | close)


def _details_agree(pairs: _Pairs, gray: np.ndarray) -> np.ndarray:
    """Return whether the finer thumbnails agree after subtracting each pixel's neighbourhood mean: bool [pairs]."""
    agree = np.zeros(len(pairs.left), bool)
    for start in range(0, len(agree), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        left, right = (gray[indices[block]].astype(np.float32) for indices in (pairs.left, pairs.right))
        for index, mirror in enumerate(MIRRORS):
            rows = pairs.mirror[block] == index
            right[rows] = mirror(right[rows])
        details = (
            _normalise_rows((image - uniform_filter(image, (0, 5, 5), mode="nearest")).reshape(len(image), -1))
            for image in (left, right)
        )
        agree[block] = np.multiply(*details).sum(1) >= MIN_DETAIL_CORRELATION
    return agree


def _tints_agree(pairs: _Pairs, gray: np.ndarray, images: Sequence[ImageInfo]) -> np.ndarray:
    """Return whether the tints agree at equal contrast: bool [pairs]. An image that was turned gray agrees with all."""
    agree = np.ones(len(pairs.left), bool)
    for row, (i, j, mirror) in enumerate(zip(pairs.left, pairs.right, pairs.mirror, strict=True)):
        first, second = images[i].tint_thumbnail, images[j].tint_thumbnail
        if first is None or second is None:
            continue
        left, right = first.astype(np.float32), MIRRORS[mirror](second[None])[0].astype(np.float32)
        left = left * (gray[j].astype(np.float32).std() / gray[i].astype(np.float32).std())
        strengths = sorted(float(np.sqrt((tint**2).mean())) for tint in (left, right))
        difference = float(np.sqrt(((left - right) ** 2).mean()))
        agree[row] = strengths[0] < 1 or difference <= MAX_TINT_DIFFERENCE + MAX_TINT_DIFFERENCE_SHARE * strengths[1]
    return agree
