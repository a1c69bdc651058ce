"""Pictures that are nearly the same: scaled, encoded again, brightened, mirrored, or taken twice of one scene.

Thumbnails of 16x16 gray levels, without their mean and contrast, are whitened over the set: what all its pictures
share (a module's grid of cells, a table's edge) no longer counts, what tells them apart does. Then all pairs are
compared, each also mirrored, by blockwise matrix products. A pair is nearly the same if it is far more alike than
either picture and its tenth neighbour, and the finer thumbnails and the colours agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from toolchain.core import progress
from toolchain.data.checks.thumbnails import THUMBNAIL_SIDE, ImageInfo

COARSE_SIDE = 16
SHRINKAGE = 1.0  # of the covariance towards a sphere of the mean variance; 0.1 amplifies JPEG's noise, 3 hides details
REFERENCE_NEIGHBOUR = 10
# Looked at one by one on two sets. Distances are to the tenth neighbour's. 20,000 thermal pictures of solar modules,
# which all look alike: four pairs encoded again at 0.03 to 0.11, then modules seen twice in one flight from 0.27.
# 977 photos of waste: five pairs of the same thing taken twice at 0.09 to 0.22, then the merely similar from 0.45.
# Photos that were halved, encoded at quality 50 and brightened by a fifth stay below 0.25.
MAX_DISTANCE_RATIO = 0.25
# a set full of copies has copies for tenth neighbours: what agrees so well needs no comparison. The most alike pair of
# the solar modules that are no copies reaches 0.988.
CERTAIN_SIMILARITY = 0.995
MIN_SIMILARITY = (
    1 - 1.2 * MAX_DISTANCE_RATIO**2
)  # similarity below which `CLOSER` cannot hold: a tenth neighbour is hardly below -0.2
MIN_DETAIL_CORRELATION = (
    0.8  # correlation of what 32x32 thumbnails hold beyond their neighbourhood's mean; the pairs above: 0.93 up
)
MIN_CONTRAST = 0.5  # gray levels of standard deviation, below which a picture shows nothing that could be compared
MAX_TINT_DIFFERENCE = 6.0  # levels of 255 that the tints of copies may differ by, and a share of their own strength
MAX_TINT_DIFFERENCE_SHARE = 0.25
MAX_IMAGES = 60_000  # pictures: beyond, a drawn sample is searched, as time grows with the square
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
    """What was searched, and the pairs found. Indices are into the pictures given."""

    searched_rows: np.ndarray  # int64 [searched]
    vectors: np.ndarray  # float32 [searched, 256]: whitened, of length 1; their product is the similarity
    pairs: tuple[tuple[int, int, bool], ...]  # and whether mirrored
    complete: bool  # False: only a sample was searched, or there were too many pairs to look at all


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Candidates: rows, columns, which mirror image, how alike."""

    left: np.ndarray
    right: np.ndarray
    mirror: np.ndarray
    alike: np.ndarray

    def chosen(self, which: np.ndarray) -> "_Pairs":
        return _Pairs(self.left[which], self.right[which], self.mirror[which], self.alike[which])


def search(looks: Sequence[ImageInfo]) -> SimilaritySearch:
    """Finds nearly equal pairs among pictures that differ in their pixels."""
    grays = [look.gray_thumbnail for look in looks if look.gray_thumbnail is not None]
    if not grays:
        return SimilaritySearch(
            searched_rows=np.arange(0), vectors=np.zeros((0, COARSE_SIDE**2), np.float32), pairs=(), complete=True
        )
    gray = np.stack(grays)
    rows = np.flatnonzero(gray.astype(np.float32).std((1, 2)) > MIN_CONTRAST)
    if not len(rows):
        return SimilaritySearch(
            searched_rows=rows, vectors=np.zeros((0, COARSE_SIDE**2), np.float32), pairs=(), complete=True
        )
    whole = len(rows) <= MAX_IMAGES
    if not whole:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_IMAGES])
    gray = gray[rows]
    views = whiten(gray)
    found = _candidates(views)
    whole &= len(found.left) < MAX_PAIRS
    found = _closer(found, views[0])
    found = found.chosen(_in_detail(found, gray))
    found = found.chosen(_in_colour(found, gray, [looks[int(row)] for row in rows]))
    pairs = zip(rows[found.left], rows[found.right], found.mirror > 0, strict=True)
    return SimilaritySearch(
        searched_rows=rows,
        vectors=views[0],
        pairs=tuple((int(i), int(j), bool(m)) for i, j, m in pairs),
        complete=bool(whole),
    )


def whiten(gray: np.ndarray) -> list[np.ndarray]:
    """Thumbnails [n, 32, 32], upright and mirrored in three ways, as vectors float32 [n, 256] of length 1.

    The mean and the covariance are those of all four together, so that a picture and its mirror image are treated
    alike whichever comes first.
    """
    step = THUMBNAIL_SIDE // COARSE_SIDE
    coarse = gray.astype(np.float32).reshape(-1, COARSE_SIDE, step, COARSE_SIDE, step).mean((2, 4))
    views = [_unit(mirror(coarse).reshape(len(coarse), -1), centred=True) for mirror in MIRRORS]
    mean = np.mean([view.mean(0) for view in views], axis=0)
    covariance = np.mean([(view - mean).T @ (view - mean) / len(view) for view in views], axis=0)
    sphere = SHRINKAGE * max(float(np.trace(covariance)) / len(covariance), 1e-12) * np.eye(len(covariance))
    root = np.linalg.cholesky(covariance + sphere)  # any root of the inverse gives the same products
    matrix = np.linalg.inv(root).T.astype(np.float32)
    return [_unit((view - mean) @ matrix) for view in views]


def _unit(rows: np.ndarray, *, centred: bool = False) -> np.ndarray:
    rows = rows - rows.mean(1, keepdims=True) if centred else rows
    found: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return found


def _candidates(views: Sequence[np.ndarray]) -> _Pairs:
    """Pairs alike enough to be looked at; each once, the earlier picture upright."""
    upright, parts, count = views[0], [_Pairs(*(np.zeros(0, kind) for kind in (int, int, int, np.float32)))], 0
    with progress.show_bar("compare pictures", len(upright)) as bar:
        for start in range(0, len(upright), BLOCK_ROWS):
            block = upright[start : start + BLOCK_ROWS]
            for mirror, view in enumerate(views):
                alike = block @ view[start:].T
                left, right = np.nonzero(np.triu(alike > MIN_SIMILARITY, 1))
                parts.append(_Pairs(left + start, right + start, np.full(len(left), mirror), alike[left, right]))
                count += len(left)
            bar.step(count=len(block))
            if count >= MAX_PAIRS:
                break
    return _Pairs(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("left", "right", "mirror", "alike"))
    )


def _closer(found: _Pairs, upright: np.ndarray) -> _Pairs:
    """Pairs much closer than the tenth neighbour of either."""
    asked = np.unique(np.concatenate([found.left, found.right]))
    tenth = np.zeros(len(upright), np.float32)
    place = min(REFERENCE_NEIGHBOUR + 1, len(upright))  # a picture is its own nearest neighbour
    for start in range(0, len(asked), BLOCK_ROWS):
        some = asked[start : start + BLOCK_ROWS]
        tenth[some] = np.partition(upright[some] @ upright.T, -place, axis=1)[:, -place]
    usual = 1 - np.maximum(tenth[found.left], tenth[found.right])
    return found.chosen((found.alike >= CERTAIN_SIMILARITY) | (1 - found.alike <= MAX_DISTANCE_RATIO**2 * usual))


def _in_detail(found: _Pairs, gray: np.ndarray) -> np.ndarray:
    """Whether pairs agree in what the finer thumbnails hold beyond their neighbourhood's mean: bool [pairs]."""
    agree = np.zeros(len(found.left), bool)
    for start in range(0, len(agree), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        left, right = (gray[side[part]].astype(np.float32) for side in (found.left, found.right))
        for mirror, turned in enumerate(MIRRORS):
            own = found.mirror[part] == mirror
            right[own] = turned(right[own])
        flat = (_unit((x - uniform_filter(x, (0, 5, 5), mode="nearest")).reshape(len(x), -1)) for x in (left, right))
        agree[part] = np.multiply(*flat).sum(1) >= MIN_DETAIL_CORRELATION
    return agree


def _in_colour(found: _Pairs, gray: np.ndarray, looks: Sequence[ImageInfo]) -> np.ndarray:
    """Whether the tints of pairs agree, contrasts made equal; a picture turned gray agrees with all: bool [pairs]."""
    agree = np.ones(len(found.left), bool)
    for row, (i, j, mirror) in enumerate(zip(found.left, found.right, found.mirror, strict=True)):
        first, second = looks[i].tint_thumbnail, looks[j].tint_thumbnail
        if first is None or second is None:
            continue
        left, right = first.astype(np.float32), MIRRORS[mirror](second[None])[0].astype(np.float32)
        left = left * (gray[j].astype(np.float32).std() / gray[i].astype(np.float32).std())
        strengths = sorted(float(np.sqrt((x**2).mean())) for x in (left, right))
        apart = float(np.sqrt(((left - right) ** 2).mean()))
        agree[row] = strengths[0] < 1 or apart <= MAX_TINT_DIFFERENCE + MAX_TINT_DIFFERENCE_SHARE * strengths[1]
    return agree
