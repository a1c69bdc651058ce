"""Letters, digits and signs of the fonts inside matplotlib, drawn as small gray images that resemble scans.

The source domain for transfer to handwritten characters where no data set may be downloaded: fonts are at hand, their
licences allow drawings made with them, and slant, stroke weight, wobble, low resolution and noise close part of the
distance to handwriting. Every image follows from SEED, its character and its number.
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

# Of signs that look alike once scaled to the same size, one stays: 0 for O and o; C for c; I for l and |; P for p;
# Δ for ∆; Λ for ∧ and ^; Φ and Ψ for their lower case; X for the times sign; of mere dots and strokes, a few.
CHARACTERS = (
    string.digits
    + "ABCDEFGHIJKLMNPQRSTUVWXYZ"
    + "abdefghijkmnqrty"
    + "ΓΔΘΛΞΠΣΦΨΩαβδεζηθλμξπρστω"
    + "!?&@#$%()[]{}*+=<>:~§¶€£¥©†«»"
    + "\N{MINUS SIGN}±÷≈≠≤≥∞∂∇∫√∀∃∩⊕→←↑↓"
)

_CANVAS = 64  # drawn larger than SIDE, so that filters work on less than a pixel of the result
_FONT_SIZE = 160  # large, so that small signs are drawn rather than blown up
_COUNTER = 2  # half the width, in canvas pixels, of the gap between strokes that thickening leaves
_CELLS = 4  # of the grid that bends the glyph, along each side
_FEWEST_PIXELS = 20  # of ink, at _FONT_SIZE; less is an empty glyph

# First capital and first digit of the alphabets that Unicode adds for mathematics: sans, bold sans, monospace, script.
_ALPHABETS = ((0x1D5A0, 0x1D7E2), (0x1D5D4, 0x1D7EC), (0x1D670, 0x1D7F6), (0x1D4D0, 0))

_Cell = tuple[tuple[int, int, int, int], tuple[float, ...]]  # a box of the result, the four corners it comes from


def write(folder: Path) -> None:
    """Writes the set as `folder/<class>/<number>.png`, gray, 32x32."""
    fonts = _fonts()
    for character in CHARACTERS:
        shapes = _shapes(character, fonts)
        path = folder / class_name(character)
        path.mkdir(parents=True, exist_ok=True)
        for index in range(IMAGES_PER_CLASS):
            rng = np.random.default_rng([SEED, ord(character), index])
            Image.fromarray(_image(shapes, rng)).save(path / f"{index:04d}.png")


def class_name(character: str) -> str:
    """The code point, because some characters may not stand in file names and some file systems fold case."""
    return f"U+{ord(character):04X}"


def _fonts() -> dict[str, Path]:
    import matplotlib

    files = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"))
    text = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
    return {p.stem: p for p in files if p.stem.startswith(text) and "Display" not in p.stem}


def _shapes(character: str, fonts: dict[str, Path]) -> list[Image.Image]:
    """The character in every font that has it, cropped to its ink and scaled to the canvas."""
    from matplotlib.ft2font import FT2Font

    found = []
    for name, path in fonts.items():
        font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        present = FT2Font(path).get_charmap()
        found += [_shape(font, point) for point in _code_points(character, name) if point in present]
    return [shape for shape in found if shape is not None]


def _code_points(character: str, font: str) -> Iterator[int]:
    slashed_zero = character == "0" and font.startswith("DejaVuSansMono")  # reads as 8 when small
    if not slashed_zero:
        yield ord(character)
    if font.startswith("STIX"):
        for capital, digit in _ALPHABETS:
            if character in string.ascii_letters:
                yield capital + (string.ascii_uppercase + string.ascii_lowercase).index(character)
            elif character in string.digits and digit:
                yield digit + int(character)


def _shape(font: ImageFont.FreeTypeFont, code_point: int) -> Image.Image | None:
    mask = font.getmask(chr(code_point), mode="L")
    if 0 in mask.size or np.count_nonzero(np.asarray(mask)) < _FEWEST_PIXELS:
        return None
    drawn = Image.frombytes("L", mask.size, bytes(mask))
    drawn = drawn.crop(drawn.getbbox())
    scale = _CANVAS / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    shape = Image.new("L", (size[0] + 4, size[1] + 4))  # a dark rim, because resampling repeats the outermost pixels
    shape.paste(drawn.resize(size, Image.Resampling.BOX), (2, 2))
    return shape


def _image(shapes: list[Image.Image], rng: np.random.Generator) -> NDArray[np.uint8]:
    shape = shapes[rng.integers(len(shapes))]
    side = (8, int(rng.integers(8, 17)), IMAGE_SIDE)[
        rng.integers(3)
    ]  # a third at the resolution of the coarsest known scans
    glyph = _bend(shape, rng, 0.6 if side == IMAGE_SIDE else 0.9)  # a scanner of few pixels is filled by the character
    return _scan(_weigh(glyph, rng, -1 if side == IMAGE_SIDE else 0), side, rng)


def _bend(shape: Image.Image, rng: np.random.Generator, smallest: float) -> Image.Image:
    """Scales, slants, turns, moves and wobbles the glyph; it stays on the canvas except for the wobble."""
    angle, slant = math.radians(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1, -slant], [0, 1]]) @ np.diag([rng.uniform(0.75, 1.15), 1])
    matrix *= _CANVAS * rng.uniform(smallest, 1) / (np.abs(matrix) @ shape.size).max()
    slack = (_CANVAS - np.abs(matrix) @ shape.size) / 2
    centre = _CANVAS / 2 + slack * rng.uniform(-0.8, 0.8, 2)  # short of the edge, where the wobble would cut it
    steps = np.linspace(0, _CANVAS, _CELLS + 1)
    nodes = np.stack(np.meshgrid(steps, steps), -1)  # [row, column, (x, y)]
    wobble = rng.normal(0, rng.uniform(0, 2.5), nodes.shape)
    places = (nodes + wobble - centre) @ np.linalg.inv(matrix).T + np.array(shape.size) / 2
    return shape.transform((_CANVAS, _CANVAS), Image.Transform.MESH, _mesh(places), Image.Resampling.BILINEAR)


def _mesh(places: NDArray[np.float64]) -> list[_Cell]:
    step = _CANVAS // _CELLS
    cells: list[_Cell] = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            x, y = column * step, row * step
            corners = places[[row, row + 1, row + 1, row], [column, column, column + 1, column + 1]]
            cells.append(((x, y, x + step, y + step), tuple(corners.ravel().tolist())))
    return cells


def _weigh(glyph: Image.Image, rng: np.random.Generator, thinnest: int) -> Image.Image:
    """Thins or thickens the strokes, as far as no hairline vanishes and no counter fills."""
    pixels = int(rng.integers(thinnest, 4))
    if pixels < 0:
        thin = _grow(glyph, pixels)
        return thin if _ink(thin) > 0.5 * _ink(glyph) else glyph
    for growth in range(pixels, 0, -1):
        reach = growth + _COUNTER
        if _ink(_grow(_grow(glyph, reach), -reach)) < 1.15 * _ink(glyph):  # growing by the reach closes no counter
            return _grow(glyph, growth)
    return glyph


def _grow(glyph: Image.Image, pixels: int) -> Image.Image:
    step = ImageFilter.MaxFilter(3) if pixels > 0 else ImageFilter.MinFilter(3)
    for _ in range(abs(pixels)):  # the same as one filter of 2 * pixels + 1, in a fraction of its time
        glyph = glyph.filter(step)
    return glyph


def _ink(glyph: Image.Image) -> float:
    return float(np.asarray(glyph, np.float32).sum())


def _scan(glyph: Image.Image, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blurs, samples at the resolution of a scanner, adds its contrast and noise, and scales to SIDE."""
    blurred = glyph.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    ink = np.asarray(blurred.resize((side, side), Image.Resampling.BOX), np.float32)
    ink = (ink / ink.max()) ** rng.uniform(0.7, 1.3)  # a scanner sets its exposure, so thin strokes are bright as well
    dark, bright = max(0.0, rng.uniform(-0.2, 0.15)), rng.uniform(0.65, 1)
    noise = rng.normal(0, max(0.0, rng.uniform(-0.06, 0.08)), ink.shape)
    gray = np.clip(dark + (bright - dark) * ink + noise, 0, 1)
    sampled = Image.fromarray(np.round(gray * 255).astype(np.uint8))
    return np.asarray(sampled.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR))
