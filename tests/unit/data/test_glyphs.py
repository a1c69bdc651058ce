"""The glyph images: same seed, same image; readable ink; class names that every file system keeps apart."""

import re

import numpy as np
import pytest

from toolchain.data.sources import glyphs


@pytest.mark.parametrize("character", ["8", "I", "\N{MINUS SIGN}", "ξ"])
def test_an_image_follows_from_its_seed_and_holds_ink_of_the_right_shape(character: str) -> None:
    shapes = glyphs._draw_in_all_fonts(character, glyphs._find_fonts())
    first, again, other = (glyphs._draw_image(shapes, np.random.default_rng([glyphs.SEED, n])) for n in (0, 0, 1))
    assert first.shape == (glyphs.IMAGE_SIDE, glyphs.IMAGE_SIDE) and first.dtype == np.uint8
    assert first.max() > 100 and first.min() < 60
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_every_character_is_in_at_least_six_fonts() -> None:
    fonts = glyphs._find_fonts()
    assert min(len(glyphs._draw_in_all_fonts(character, fonts)) for character in ("∂", "⊕", "€", "ω")) >= 6


def test_fonts_lend_no_other_sign_of_the_same_code_point() -> None:
    assert list(glyphs._list_code_points("A", "STIXGeneral")) == [0x41, 0x1D5A0, 0x1D5D4, 0x1D670, 0x1D4D0]
    assert list(glyphs._list_code_points("7", "STIXGeneral")) == [0x37, 0x1D7E9, 0x1D7F3, 0x1D7FD]


def test_class_names_are_unique_and_safe() -> None:
    names = [glyphs.class_name(character) for character in glyphs.CHARACTERS]
    assert 90 <= len(names) == len({name.lower() for name in names})
    assert all(re.fullmatch(r"U\+[0-9A-F]{4}", name) for name in names)
