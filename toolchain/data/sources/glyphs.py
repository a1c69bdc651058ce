"""Draw letters, digits and symbols from the fonts inside matplotlib, as small gray images that resemble scans.

This is the source dataset for transfer to handwritten characters where no dataset may be downloaded: the fonts are
installed, their licences allow images drawn with them, and slant, stroke weight, wobble, low resolution and noise close
part of the gap to handwriting. An image is determined by SEED, its character and its number.
"""

import math
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageFont

SEED = 20240
IMAGES_PER_CLASS = 150
IMAGE_SIDE = 32

# Of characters that look alike once scaled to the same size, one is kept: 0 for O and o; C for c; I for l and |; P for
# p; Δ for ∆; Λ for ∧ and ^; Φ and Ψ for their lower case; X for the times sign; and a few of those that are only dots
# and strokes.
CHARACTERS = (
    string.digits
    + "ABCDEFGHIJKLMNPQRSTUVWXYZ"
    + "abdefghijkmnqrty"
    + "ΓΔΘΛΞΠΣΦΨΩαβδεζηθλμξπρστω"
    + "!?&@#$%()[]{}*+=<>:~§¶€£¥©†«»"
    + "\N{MINUS SIGN}±÷≈≠≤≥∞∂∇∫√∀∃∩⊕→←↑↓"
)

_CANVAS = 64  # pixels per side; larger than IMAGE_SIDE, so that filters work at less than a pixel of the result
_FONT_SIZE = 160  # pixels; large, so that small characters are drawn in detail rather than enlarged
_MIN_HALF_GAP = 2  # canvas pixels: half the gap between strokes that thickening must leave
_CELLS = 4  # cells per side of the grid that distorts the glyph
_MIN_INK_PIXELS = 20  # at _FONT_SIZE; a glyph with fewer is empty

# first capital and first digit of Unicode's mathematical alphabets: sans, bold sans, monospace, script (no digits)
_ALPHABETS = ((0x1D5A0, 0x1D7E2), (0x1D5D4, 0x1D7EC), (0x1D670, 0x1D7F6), (0x1D4D0, 0))

_Cell = tuple[tuple[int, int, int, int], tuple[float, ...]]  # a box of the result, and its four corners in the source


def write(folder: Path) -> None:
    """Write the dataset as `folder/<class>/<number>.png`, gray, 32x32 pixels."""
    fonts = _find_fonts()
    for character in CHARACTERS:
        shapes = _draw_in_all_fonts(character, fonts)
        path = folder / class_name(character)
        path.mkdir(parents=True, exist_ok=True)
        for index in range(IMAGES_PER_CLASS):
            rng = np.random.default_rng([SEED, ord(character), index])
            Image.fromarray(_draw_image(shapes, rng)).save(path / f"{index:04d}.png")


def class_name(character: str) -> str:
    """Return the code point: not every character may be in a file name, and some file systems ignore case."""
    return f"U+{ord(character):04X}"


def _find_fonts() -> dict[str, Path]:
    import matplotlib

    files = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"))
    text_fonts = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
    return {path.stem: path for path in files if path.stem.startswith(text_fonts) and "Display" not in path.stem}


def _draw_in_all_fonts(character: str, fonts: dict[str, Path]) -> list[Image.Image]:
    """Draw the character in every font that has it, cropped to its ink and scaled to the canvas."""
    from matplotlib.ft2font import FT2Font

    shapes = []
    for name, path in fonts.items():
        font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        available = FT2Font(path).get_charmap()
        shapes += [_draw_glyph(font, point) for point in _list_code_points(character, name) if point in available]
    return [shape for shape in shapes if shape is not None]


def _list_code_points(character: str, font: str) -> Iterator[int]:
    """Yield the code points at which a font has the character; the STIX fonts have it in several alphabets."""
    slashed_zero = character == "0" and font.startswith("DejaVuSansMono")  # looks like an 8 when small
    if not slashed_zero:
        yield ord(character)
    if font.startswith("STIX"):
        for capital, digit in _ALPHABETS:
            if character in string.ascii_letters:
                yield capital + (string.ascii_uppercase + string.ascii_lowercase).index(character)
            elif character in string.digits and digit:
                yield digit + int(character)


def _draw_glyph(font: ImageFont.FreeTypeFont, code_point: int) -> Image.Image | None:
    """Return the glyph, scaled to the canvas; None where the font's glyph is empty."""
    mask = font.getmask(chr(code_point), mode="L")
    if 0 in mask.size or np.count_nonzero(np.asarray(mask)) < _MIN_INK_PIXELS:
        return None
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    glyph = glyph.crop(glyph.getbbox())
    scale = _CANVAS / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    shape = Image.new("L", (size[0] + 4, size[1] + 4))  # a dark rim, because resampling repeats the outermost pixels
    shape.paste(glyph.resize(size, Image.Resampling.BOX), (2, 2))
    return shape


def _draw_image(shapes: list[Image.Image], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one image of the character, uint8 [32, 32], in a random font, distorted and scanned at random."""
    shape = shapes[rng.integers(len(shapes))]
    # a third of the images has the resolution of the coarsest known scans, a third one in between
    resolution = (8, int(rng.integers(8, 17)), IMAGE_SIDE)[rng.integers(3)]
    coarse = resolution != IMAGE_SIDE  # then the character fills the image, and its strokes are not thinned
    glyph = _distort(shape, rng, min_size=0.9 if coarse else 0.6)
    return _scan(_change_weight(glyph, rng, min_growth=0 if coarse else -1), resolution, rng)


def _distort(shape: Image.Image, rng: np.random.Generator, min_size: float) -> Image.Image:
    """Scale, slant, rotate, move and warp the glyph; only warping can take it off the canvas."""
    angle, slant = math.radians(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.25)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation @ np.array([[1, -slant], [0, 1]]) @ np.diag([rng.uniform(0.75, 1.15), 1])
    matrix *= _CANVAS * rng.uniform(min_size, 1) / (np.abs(matrix) @ shape.size).max()
    slack = (_CANVAS - np.abs(matrix) @ shape.size) / 2
    centre = _CANVAS / 2 + slack * rng.uniform(-0.8, 0.8, 2)  # not up to the edge, where warping would cut it off
    steps = np.linspace(0, _CANVAS, _CELLS + 1)
    nodes = np.stack(np.meshgrid(steps, steps), -1)  # [row, column, (x, y)]
    warp = rng.normal(0, rng.uniform(0, 2.5), nodes.shape)
    sources = (nodes + warp - centre) @ np.linalg.inv(matrix).T + np.array(shape.size) / 2
    return shape.transform((_CANVAS, _CANVAS), Image.Transform.MESH, _make_mesh(sources), Image.Resampling.BILINEAR)


def _make_mesh(sources: NDArray[np.float64]) -> list[_Cell]:
    """Return Pillow's mesh from the place in the source of every grid node, [row, column, (x, y)]."""
    step = _CANVAS // _CELLS
    cells: list[_Cell] = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            x, y = column * step, row * step
            corners = sources[[row, row + 1, row + 1, row], [column, column, column + 1, column + 1]]
            cells.append(((x, y, x + step, y + step), tuple(corners.ravel().tolist())))
    return cells


def _change_weight(glyph: Image.Image, rng: np.random.Generator, min_growth: int) -> Image.Image:
    """Thin or thicken the strokes, as far as no hairline vanishes and no counter (enclosed space) fills."""
    max_growth = int(rng.integers(min_growth, 4))
    if max_growth < 0:
        thinned = _grow(glyph, max_growth)
        return thinned if _sum_ink(thinned) > 0.5 * _sum_ink(glyph) else glyph
    for growth in range(max_growth, 0, -1):
        reach = growth + _MIN_HALF_GAP
        if _sum_ink(_grow(_grow(glyph, reach), -reach)) < 1.15 * _sum_ink(glyph):  # no counter closes within reach
            return _grow(glyph, growth)
    return glyph


def _grow(glyph: Image.Image, pixels: int) -> Image.Image:
    """Thicken all strokes by `pixels` on each side; thin them where it is negative."""
    min_or_max = ImageFilter.MaxFilter(3) if pixels > 0 else ImageFilter.MinFilter(3)
    for _ in range(abs(pixels)):  # equals a single filter of size 2 * pixels + 1, and takes a fraction of its time
        glyph = glyph.filter(min_or_max)
    return glyph


def _sum_ink(glyph: Image.Image) -> float:
    return float(np.asarray(glyph, np.float32).sum())


def _scan(glyph: Image.Image, resolution: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur, sample at the scanner's resolution, add its contrast and noise, and scale to IMAGE_SIDE."""
    blurred = glyph.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    ink = np.asarray(blurred.resize((resolution, resolution), Image.Resampling.BOX), np.float32)
    ink = (ink / ink.max()) ** rng.uniform(0.7, 1.3)  # a scanner sets its exposure, so thin strokes are bright, too
    dark, bright = max(0.0, rng.uniform(-0.2, 0.15)), rng.uniform(0.65, 1)
    noise = rng.normal(0, max(0.0, rng.uniform(-0.06, 0.08)), ink.shape)
    gray = np.clip(dark + (bright - dark) * ink + noise, 0, 1)
    sampled = Image.fromarray(np.round(gray * 255).astype(np.uint8))
    return np.asarray(sampled.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR))
