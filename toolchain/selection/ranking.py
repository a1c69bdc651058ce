"""The ranking of model candidates as plain data, also read from its JSON: ranks, Pareto front, and which one to choose."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolchain.core.errors import ToolchainError


def assign_ranks(rows: Sequence[dict[str, Any]], score: str) -> None:
    """Number the candidates from the best score down, and mark the Pareto front of score against latency.

    Args:
        rows: the candidates; `rank` and `front` are set in place. Those with an error get no rank.
        score: the score that decides.
    """

    def sort_key(row: dict[str, Any]) -> tuple[float, bool]:
        return -row["scores"][score], not row["model"]["weights"]  # of equal scores, the pretrained one first

    ranked = sorted((row for row in rows if not row["error"]), key=sort_key)
    for rank, row in enumerate(ranked, 1):
        row["rank"] = rank
    fastest = float("inf")
    for row in ranked:  # from the best score down, so the front is what is faster than everything before it
        latency = read_latency_ms(row)
        row["front"] = row["may_ship"] != "no" and (latency is not None and latency < fastest)
        fastest = min(fastest, latency) if row["front"] and latency is not None else fastest


def read_latency_ms(row: dict[str, Any]) -> float | None:
    """Return a candidate's latency in milliseconds, in its fastest precision; None where it was not timed."""
    return row["latency_ms"][row["fastest"]]["estimate"] if row["fastest"] else None


def pick_best(ranking: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the best candidate that may be shipped, and why; if none may, the best of all."""
    usable = [row for row in ranking["candidates"] if not row["error"]]
    best = next((row for row in usable if row["may_ship"] != "no"), usable[0])
    limited = "" if best is usable[0] else " of those that may be shipped"
    warning = "; none may be shipped" if best["may_ship"] == "no" else ""
    return best, f"the best {ranking['score']} score{limited}, {best['scores'][ranking['score']]:.3f}{warning}"


def pick_within_latency(ranking: Mapping[str, Any], limit_ms: float | None) -> tuple[dict[str, Any], str]:
    """Return the best candidate that may be shipped within a latency, and why.

    Args:
        ranking: the candidates, best first.
        limit_ms: highest latency in milliseconds; None: any.

    Raises:
        ToolchainError: none may be shipped, none is fast enough, or none was timed and there is a limit.
    """
    best, why = pick_best(ranking)
    if best["may_ship"] == "no":
        names = ", ".join(row["name"] for row in ranking["candidates"] if not row["error"])
        raise ToolchainError(
            f"no candidate may be shipped: {names}. Name further candidates, or set model.name to the one you want anyway"
        )
    if limit_ms is None:
        return best, why
    front = [row for row in ranking["candidates"] if row["front"]]
    within_limit = [row for row in front if (read_latency_ms(row) or 0.0) <= limit_ms]
    if not within_limit:
        lowest = min((read_latency_ms(row) or 0.0 for row in front), default=None)
        nearest = f"the fastest takes {lowest:.3g} ms" if lowest else "nothing was timed"
        raise ToolchainError(
            f"no candidate is within {limit_ms:.3g} ms before pruning: {nearest}. Name faster candidates, allow more, or "
            "name one model, which is then pruned to the budget"
        )
    row, score = within_limit[0], ranking["score"]
    return row, f"the best {score} score ({row['scores'][score]:.3f}) within {limit_ms:.3g} ms"
