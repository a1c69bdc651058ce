"""The history of a target: every measurement of latency and accuracy is appended to a file, one JSON object a line.

Milliseconds of different days are to be plotted, not tested: machine and load may differ between them. Whether a candidate
is slower than its baseline is tested by the gate.
"""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.core.errors import ToolchainError

SCHEMA = 1
FILE_NAME = "history.jsonl"
REQUIRED_KEYS = {  # of every line
    "at", "kind", "machine", "version", "recipe", "target", "runtime", "name", "precision", "threads", "sha256", "size_bytes",
    "outcome", "p50_ms", "accuracy",
}  # fmt: skip
HistoryLine = Mapping[str, Any]


def append(path: Path, entries: Sequence[HistoryLine]) -> None:
    """Append entries, one a line; where a killed run left an incomplete last line, they start on a new one.

    Raises:
        ToolchainError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            for entry in entries:
                file.write(json.dumps(files.to_jsonable(entry), sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as reason:
        raise files.disk_error(path, reason) from reason


def read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return all entries in the order of time, and the numbers of the lines that are not entries, from 1.

    Raises:
        ToolchainError: the file cannot be read, or none of its lines is an entry.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as reason:
        raise ToolchainError(
            f"cannot read {path}: {reason.strerror}. Give the folder of the runs, into which `export`, `bench` and `gate` "
            "write it"
        ) from reason
    entries, skipped = [], []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if entry["schema"] != SCHEMA or not set(entry) >= REQUIRED_KEYS:
                raise ValueError
            datetime.datetime.fromisoformat(entry["at"])
            for name in ("p50_ms", "accuracy"):
                _ = entry[name] and [float(entry[name][key]) for key in ("low", "estimate", "high")]
            entries.append(entry)
        except (ValueError, KeyError, TypeError):
            skipped.append(number)
    if not entries:
        raise ToolchainError(
            f"{path} holds no measurement of schema {SCHEMA}, the one that this version reads. Run `export`, `bench` or "
            "`gate` to add one"
        )
    return sorted(entries, key=lambda entry: entry["at"]), skipped


def from_export(report: Mapping[str, Any], archive: str) -> list[HistoryLine]:
    """Return the entry of a finished export: of the variant that it ships, or would ship within the budgets.

    Args:
        report: as in report.json.
        archive: SHA-256 of the bundle's archive; empty where none was written.
    """
    variant = next(row for row in report["variants"] if row["name"] == report["candidate"])
    latency = variant["latency_ms"]
    return [{
        **_describe_run("export", report["machine"], report["versions"].get(report["runtime"])),
        "recipe": report["recipe"], "target": report["target"], "runtime": report["runtime"], "name": variant["name"],
        "precision": variant["precision"], "threads": variant["threads"], "sha256": archive,
        "size_bytes": variant["size_bytes"], "outcome": "pass" if report["shipped"] else "fail",
        "p50_ms": latency and {
            "estimate": latency["p50"], "low": latency["low"], "high": latency["high"], "samples": latency["samples"]
        },
        "accuracy": {
            "estimate": variant["accuracy"], "low": variant["accuracy_low"], "high": variant["accuracy_high"],
            "samples": variant["images"],
        },
    }]  # fmt: skip


def from_bench(report: Mapping[str, Any]) -> list[HistoryLine]:
    """Return an entry for every model of a benchmark; `report` is as in bench.json."""
    return [
        {
            **_describe_run("bench", report["machine"], report["versions"][model["runtime"]].get(model["runtime"])),
            "recipe": model.get("recipe", model["name"]), "target": model.get("target", model["runtime"]),
            "runtime": model["runtime"], "name": model["name"], "precision": model["precision"],
            "threads": model["threads"], "sha256": model["sha256"], "size_bytes": model["size_bytes"], "outcome": "",
            "p50_ms": model["latency_ms"]["p50"], "accuracy": None,
        }
        for model in report["subjects"]
    ]  # fmt: skip


def from_gate(report: Mapping[str, Any], runtime: str) -> list[HistoryLine]:
    """Return an entry for every candidate of a gate, with the ratio of its latency to the baseline's.

    Args:
        report: as in gate.json.
        runtime: of the target.
    """
    return [
        {
            **_describe_run("gate", report["machine"], report["versions"]["candidate"].get(runtime)),
            "recipe": row["recipe"], "target": report["target"], "runtime": runtime, "name": "candidate",
            "precision": row["candidate"]["precision"], "threads": report["threads"], "sha256": row["candidate"]["sha256"],
            "size_bytes": row["candidate"]["size_bytes"], "outcome": row["outcome"], "p50_ms": row["p50_ms"]["candidate"],
            "accuracy": row["accuracy"], "slower": row["latency"]["candidate"]["slower"],
        }
        for row in report["gates"]
    ]  # fmt: skip


def _describe_run(verb: str, machine: Mapping[str, Any], version: str | None) -> dict[str, Any]:
    """Return the keys that the entries of all verbs share; `version` is the runtime's."""
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    return {"schema": SCHEMA, "at": files.utc_now(), "kind": verb, "machine": cpu, "version": version}
