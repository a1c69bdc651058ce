"""What a recipe's `[model]` says of pixels: the rules, and mean and std brought to pixels in 0..1."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from toolchain.config.recipe import ModelSpec

Rules = list[tuple[bool, str]]
LEAST_CROP_SHARE = 0.1  # below it the resized image would be more than ten times as large as what is used of it
FITTING_KEYS = (
    "resize",
    "crop_share",
    "fill",
    "interpolation",
    "antialias",
)  # a teacher has none: it sees the student's


def check(model: ModelSpec, name: str) -> Rules:
    """Return the rules for a model's pixels, each with its message.

    Args:
        model: as it was written, mean and std not yet brought to 0..1.
        name: of its table, for messages.
    """
    return [
        (len(model.mean) == len(model.std) == 3, f"{name}.mean and {name}.std need three numbers each"),
        (all(map(math.isfinite, (*model.mean, *model.std))), f"{name}.mean and {name}.std must be finite numbers"),
        (all(channel > 0 for channel in model.std), f"{name}.std = {model.std}: must be above 0"),
        *_range_rules(model, name),
        (
            model.crop_share is None or model.resize == "crop",
            f'{name}.crop_share = {model.crop_share}: has no effect while {name}.resize = "{model.resize}"; set that to "crop"',
        ),
        (
            model.crop_share is None or LEAST_CROP_SHARE <= model.crop_share <= 1,
            f"{name}.crop_share = {model.crop_share}: the share of the shorter side that is used, from {LEAST_CROP_SHARE} to 1",
        ),
        (
            model.fill is None or model.resize == "letterbox",
            f'{name}.fill = {model.fill}: has no effect while {name}.resize = "{model.resize}"; set that to "letterbox"',
        ),
        (
            all(0 <= level <= 255 for level in _levels(model)),
            f"{name}.fill = {model.fill}: a grey level, or red, green and blue, each from 0 to 255",
        ),
        (
            model.antialias is not False or model.interpolation != "area",
            f'{name}.antialias = false: has no meaning with {name}.interpolation = "area", which is an average; leave it out, '
            'or take "bilinear" or "bicubic"',
        ),
    ]


def check_teacher(teacher: ModelSpec) -> Rules:
    """Return the rules for a teacher's pixels: its own mean, std and order, and the student's images."""
    default = ModelSpec(name="")
    return [
        *check(teacher, "teacher"),
        *(
            (
                getattr(teacher, key) == getattr(default, key),
                f"teacher.{key} = {getattr(teacher, key)!r}: a teacher looks at the images as [model] resizes them; leave it out",
            )
            for key in FITTING_KEYS
        ),
    ]


def _levels(model: ModelSpec) -> tuple[int, ...]:
    return model.fill if isinstance(model.fill, tuple) else () if model.fill is None else (model.fill,)


def _range_rules(model: ModelSpec, name: str) -> Rules:
    """Check that mean and std suit the range that they are said to be given in."""
    values = f"{name}.mean = {model.mean}, {name}.std = {model.std}"
    if model.pixel_values == "0..1":
        return [
            (
                all(value <= 1 for value in (*model.mean, *model.std)),
                f"{values}: above 1, but pixels are in 0..1 here; if these are of pixels in 0..255, say so: "
                f'{name}.pixel_values = "0..255"',
            )
        ]
    return [
        (
            all(mean == 0 or 1 <= mean <= 255 for mean in model.mean) and all(1 <= std <= 255 for std in model.std),
            f'{values}: with {name}.pixel_values = "0..255" a mean is 0, or from 1 to 255, and a std from 1 to 255 (1: none); '
            "give both in 0..255, or leave pixel_values out",
        )
    ]


def to_unit_range(model: ModelSpec) -> ModelSpec:
    """Return a model with mean and std of pixels in 0..1, whichever they were given in."""
    if model.pixel_values == "0..1":
        return model
    mean, std = (tuple(value / 255 for value in values) for values in (model.mean, model.std))
    return dataclasses.replace(model, mean=mean, std=std, pixel_values="0..1")


def mark_given(content: dict[str, Any]) -> None:
    """Note in the tables of a file which models bring mean or std, so that published values do not overrule them."""
    for table in _find_models(content):
        if {"mean", "std"} & table.keys():
            table.setdefault("published", False)


def _find_models(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tables of a recipe or shortlist that describe a model; a file may hold anything in their place."""
    candidates = content.get("candidates")
    tables = [content, *(candidates if isinstance(candidates, list) else [])]
    for table in tables:
        if isinstance(table, dict):
            yield from (table[key] for key in ("model", "teacher") if isinstance(table.get(key), dict))
