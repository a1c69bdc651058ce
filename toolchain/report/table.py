"""The report's tables as text, before anyone decides how they look.

Terminal, Markdown and HTML only lay these out, so that they cannot disagree. Nothing depends on the order of keys:
a report read back from report.json reads the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toolchain import figures, headline
from toolchain.headline import Report

FLOW = (
    "data",
    "select",
    "adapt",
    "sparsify",
    "fit",
    "sensitivity",
    "place",
    "prune",
    "recover",
    "quantize",
    "export",
    "verify",
    "bench",
    "judge",
    "bundle",
)
FEW = 20  # names shown of a long list


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text. `prose` are the columns of words; `spare` those to leave out, in turn, on a narrow terminal."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: tuple[int, ...] = (0,)
    spare: tuple[int, ...] = ()
    marked: int | None = None  # row of the variant that ships


def verdicts(report: Report) -> Table:
    """Every check with what was measured, the limit and why."""
    rows = tuple(
        (
            headline.words(v["check"]),
            headline.words(v["outcome"]),
            figures.checked(v["check"], v.get("measured")),
            figures.checked(v["check"], v.get("limit"), limit=True),
            v.get("why") or "",
        )
        for v in report.get("verdicts") or ()
    )
    return Table(columns=("Check", "Outcome", "Measured", "Limit", "Why"), rows=rows, prose=(0, 1, 4))


def variants(report: Report) -> Table:
    """Accuracy, latency and size of all variants, with what each gains and loses against the dense float model."""
    columns = ("Variant", "Accuracy", "Change", "Balanced", "p50", "p90", "p99", "Speed-up", "Size")
    rows = tuple(
        (
            v["name"],
            figures.accuracy(v),
            figures.change(v.get("drop")),
            figures.accuracy(v, "balanced_"),
            figures.latency(v.get("latency_ms")),
            *(figures.milliseconds((v.get("latency_ms") or {}).get(key)) for key in ("p90", "p99")),
            figures.ratio(_speedup(report, v["name"])),
            figures.size(v.get("size_bytes")),
        )
        for v in report.get("variants") or ()
    )
    return Table(columns=columns, rows=rows, spare=(6, 3, 2, 5, 7), marked=_marked(report))


def _speedup(report: Report, name: str) -> Mapping[str, Any] | None:
    """A variant's speed-up over the dense float model, where it was paired with it."""
    pairs = report.get("ratios") or ()
    found = (p for p in pairs if p.get("variant") == name and p.get("baseline") == headline.FLOAT)
    own = report.get("speedup") if name == headline.subject(report).get("name") else None
    return next(found, own)


def costs(report: Report) -> Table:
    """What the variants need besides time, and how far each follows the model it came from."""
    footprint = ("Peak memory", "Load", "First run", "Of peak", "Parity", "Steps")
    columns = ("Variant", "Method", "Pictures", "MACs", "Parameters", *footprint)
    rows = tuple(
        (
            v["name"],
            v.get("method") or figures.NONE,
            figures.sides(v.get("image_size")),
            figures.count(v.get("macs")),
            figures.count(v.get("parameters")),
            figures.size(v.get("peak_rss_bytes")),
            figures.milliseconds(v.get("load_ms")),
            figures.milliseconds(v.get("first_ms")),
            figures.percent(v.get("peak_share")),
            figures.percent((v.get("parity") or {}).get("top1_agreement")),
            figures.steps((v.get("parity") or {}).get("max_steps")),
        )
        for v in report.get("variants") or ()
    )
    return Table(columns=columns, rows=rows, prose=(0, 1), marked=_marked(report))


def image_sizes(report: Report) -> Table:
    """Sizes of the pictures that a short training was to choose among."""
    rows = tuple(
        (
            figures.sides(one["size"]),
            figures.times(one["latency"]),
            figures.percent(one["reached"]),
            str(one["images"]),
        )
        for one in report.get("image_sizes") or ()
    )
    taken = figures.sides(headline.subject(report).get("image_size"))
    marked = next((index for index, row in enumerate(rows) if row[0] == taken), None)
    columns = ("Pictures", "Of the dense latency", "Validation after a short training", "Images")
    return Table(columns=columns, rows=rows, marked=marked)


def _marked(report: Report) -> int | None:
    names = [v["name"] for v in report.get("variants") or ()]
    name = headline.shipped(report)
    return names.index(name) if name in names else None


def coverage(report: Report) -> Table:
    """How much of each integer variant ran in integers, with every convolution and linear layer that did not."""
    every = ((v["name"], v.get("integer_coverage") or {}) for v in report.get("variants") or ())
    found = [(name, c) for name, c in every if c.get("planned") or c.get("integer")]
    rows = tuple(
        (
            name,
            *(str(c.get(k, figures.NONE)) for k in ("integer", "planned", "total")),
            ", ".join(c.get("float_ops") or ()) or "none",
        )
        for name, c in found
    )
    shipping = next((i for i, (name, _) in enumerate(found) if name == headline.shipped(report)), None)
    columns = ("Variant", "In integers", "Planned", "In all", "Left in float")
    return Table(columns=columns, rows=rows, prose=(0, 4), marked=shipping)


def layers(report: Report) -> Table:
    """Widths and multiply-accumulates of every layer before and after pruning."""
    rows = tuple(
        (
            n["name"],
            str(n["before"]),
            str(n["after"]),
            figures.count(n.get("macs_before")),
            figures.count(n.get("macs_after")),
        )
        for n in report.get("layers") or ()
    )
    return Table(columns=("Layer", "Channels before", "After", "MACs before", "After"), rows=rows)


def narrowed(report: Report) -> str:
    """One sentence on what pruning took."""
    found = report.get("layers") or ()
    fewer = sum(n["after"] < n["before"] for n in found)
    before, after = (sum(n.get(key) or 0 for n in found) for key in ("macs_before", "macs_after"))
    took = f"; {headline.pair(figures.count(before), figures.count(after))} multiply-accumulates" if before else ""
    return f"{fewer} of {len(found)} layers narrower{took}" if found else "Not pruned"


def ordered(names: Iterable[str]) -> list[str]:
    """Stages as they run; names that are no stage follow in alphabetical order."""
    return sorted(names, key=lambda name: (FLOW.index(name) if name in FLOW else len(FLOW), name))


def training(report: Report) -> Table:
    """Epochs, losses and validation accuracy of every training stage."""
    stages, rows = report.get("training") or {}, []
    for name in ordered(stages):
        reached = [e["accuracy"] for e in stages[name] if not figures.missing(e.get("accuracy"))]
        losses = [e["loss"] for e in stages[name] if not figures.missing(e.get("loss"))]
        best, last = (max(reached), reached[-1]) if reached else (None, None)
        loss = figures.significant(losses[-1] if losses else None)
        rows.append((name, str(len(stages[name])), figures.percent(best), figures.percent(last), loss))
    return Table(columns=("Stage", "Epochs", "Best accuracy", "Last accuracy", "Last loss"), rows=tuple(rows))


def seconds(report: Report) -> Table:
    """Time of each stage that took any, and all together."""
    took = report.get("seconds") or {}
    rows = [(name, figures.duration(took[name])) for name in ordered(took) if took[name] != 0]
    known = [value for value in took.values() if not figures.missing(value)]
    total = figures.duration(sum(known) if known else None)
    return Table(columns=("Stage", "Time"), rows=(*rows, ("all", total)) if rows else ())


def measured(report: Report) -> Table:
    """On what, with what and how often it was measured."""
    data, found = report.get("data") or {}, headline.subject(report)
    facts: dict[str, Any] = {
        "runtime": report.get("runtime"),
        "threads": found.get("threads"),
        "paired rounds": (report.get("speedup") or {}).get("samples"),
        "latency samples": (found.get("latency_ms") or {}).get("samples"),
        "seed": report.get("seed"),
        "domain": report.get("domain"),
        "images": ", ".join(f"{name} {_text(n)}" for name, n in _splits(data.get("images") or {})),
        "classes": _list(data.get("classes") or ()),
        "images skipped": _list(data.get("skipped") or ()) or "none",
        "data digest": data.get("digest"),
        "calibration images": (data.get("calibration") or {}).get("images"),
        **_adapted(report),
        "pretrained weights": (report.get("pretrained") or {}).get("source"),
        "backbone loaded": figures.percent((report.get("pretrained") or {}).get("share")),
        **{f"machine: {headline.words(k)}": v for k, v in sorted((report.get("machine") or {}).items())},
        **{f"version: {k}": v for k, v in sorted((report.get("versions") or {}).items())},
    }
    return Table(columns=("What", "Value"), rows=tuple((k, _text(v)) for k, v in facts.items()), prose=(0, 1))


def _adapted(report: Report) -> dict[str, Any]:
    """How the dense model was trained, as far as the report says."""
    found = report.get("adapt") or {}
    changes = ", ".join(f"{headline.words(k)} {_text(v)}" for k, v in (found.get("augment") or {}).items())
    chosen = " (chosen for the kind and number of images)" if found.get("augment_auto") else ""
    probe, over = found.get("probe") or {}, found.get("over_seeds")
    return {
        "aims at": _aim(found.get("balance")),
        "augmentation": f"{changes or 'none'}{chosen}" if found else None,
        "linear probe, validation": figures.percent(probe.get("accuracy")),
        "teacher of the dense model": found.get("teacher"),
        "validation over seeds": over
        and (
            f"mean {figures.percent(over['mean'])}, standard deviation {100 * over['deviation']:.1f} points, "
            f"{over['seeds']} seeds"
        ),
    }


def spread(over: Mapping[str, Any]) -> dict[str, Any]:
    """An interval under the names of a variant's accuracy."""
    return {"accuracy": over["estimate"], "accuracy_low": over["low"], "accuracy_high": over["high"]}


def _aim(balance: float | None) -> str | None:
    if balance is None:
        return None
    ends = {0.0: "accuracy", 1.0: "balanced accuracy"}
    return ends.get(balance, f"accuracy and balanced accuracy (balance = {balance:g})")


def joined(report: Report) -> Table:
    """What further sets brought on the domain's own validation images."""
    rows = tuple(
        (
            one["name"],
            str(one["images"]),
            figures.significant(one["weight"]),
            figures.gained(one["gain"]),
            figures.gained(one["balanced_gain"]),
            str(one["gain"]["samples"]),
            "stays" if one["kept"] else "dropped: it brings nothing",
            _beside(one),
        )
        for one in (report.get("adapt") or {}).get("joined") or ()
    )
    columns = ("Further set", "Images", "Weight", "Brings", "Balanced", "Measured on", "Outcome", "Left out")
    return Table(columns=columns, rows=rows, prose=(0, 6, 7))


def _beside(one: Mapping[str, Any]) -> str:
    parts = [f"classes {_list(one['left_out'])}"] if one["left_out"] else []
    parts += [f"{one['leaked']} images that are in validation or test"] if one["leaked"] else []
    parts += [f"{one['corrupt']} unreadable files"] if one["corrupt"] else []
    return "; ".join(parts) or "nothing"


def seeds(report: Report) -> Table:
    """Every repeat of the fine-tuning, where there was more than one."""
    found = (report.get("adapt") or {}).get("seeds") or ()
    rows = tuple(
        (
            str(one["seed"]),
            figures.percent(one["validation"]),
            figures.percent(one["validation_balanced"]),
            str(one["epoch"]),
            "goes on" if one["chosen"] else "",
        )
        for one in found
    )
    columns = ("Seed", "Validation accuracy", "Balanced", "Best epoch", "")
    return Table(columns=columns, rows=rows if len(rows) > 1 else (), prose=(0, 4))


def _splits(images: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(images.items(), key=lambda item: ("train", "val", "test", item[0]).index(item[0]))


def _list(names: Iterable[Any]) -> str:
    shown = [_text(name) for name in names]
    rest = f" and {len(shown) - FEW} more" if len(shown) > FEW else ""
    return f"{len(shown)}: {', '.join(shown[:FEW])}{rest}" if shown else ""


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return figures.NONE if figures.missing(value) or value == "" else str(value)
