"""Every measurement as one line of JSON, appended: how latency and accuracy of a target have moved over time.

Milliseconds of different days are for a plot to look at; whether something became slower is what `gate` answers.
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
REQUIRED_KEYS = {  # in every line
    "at", "kind", "machine", "version", "recipe", "target", "runtime", "name", "precision", "threads", "sha256", "size_bytes",
    "outcome", "p50_ms", "accuracy",
}  # fmt: skip
HistoryLine = Mapping[str, Any]


def append(path: Path, entries: Sequence[HistoryLine]) -> None:
    """Adds lines, each whole; a line that an earlier run was cut in stays alone on its own.

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
    """All entries in the order of time, and the numbers of the lines that are none.

    Raises:
        ToolchainError: the file cannot be read, or no line of it is an entry.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as reason:
        raise ToolchainError(
            f"cannot read {path}: {reason.strerror}; `export`, `bench` and `gate` write it in the folder of the runs"
        ) from reason
    found, odd = [], []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if entry["schema"] != SCHEMA or not set(entry) >= REQUIRED_KEYS:
                raise ValueError
            datetime.datetime.fromisoformat(entry["at"])
            for name in ("p50_ms", "accuracy"):
                _ = entry[name] and [float(entry[name][key]) for key in ("low", "estimate", "high")]
            found.append(entry)
        except (ValueError, KeyError, TypeError):
            odd.append(number)
    if not found:
        raise ToolchainError(f"{path} holds no measurement that this version reads (schema {SCHEMA})")
    return sorted(found, key=lambda entry: entry["at"]), odd


def from_export(report: Mapping[str, Any], archive: str) -> list[HistoryLine]:
    """Of a finished run: the variant that ships, or would."""
    own = next(v for v in report["variants"] if v["name"] == report["candidate"])
    timed = own["latency_ms"]
    return [{
        **_common("export", report["machine"], report["versions"].get(report["runtime"])),
        "recipe": report["recipe"], "target": report["target"], "runtime": report["runtime"], "name": own["name"],
        "precision": own["precision"], "threads": own["threads"], "sha256": archive, "size_bytes": own["size_bytes"],
        "outcome": "pass" if report["shipped"] else "fail",
        "p50_ms": timed and {"estimate": timed["p50"], "low": timed["low"], "high": timed["high"], "samples": timed["samples"]},
        "accuracy": {
            "estimate": own["accuracy"], "low": own["accuracy_low"], "high": own["accuracy_high"], "samples": own["images"]
        },
    }]  # fmt: skip


def from_bench(report: Mapping[str, Any]) -> list[HistoryLine]:
    """Of every model that was timed."""
    return [
        {
            **_common("bench", report["machine"], report["versions"][one["runtime"]].get(one["runtime"])),
            "recipe": one.get("recipe", one["name"]), "target": one.get("target", one["runtime"]), "runtime": one["runtime"],
            "name": one["name"], "precision": one["precision"], "threads": one["threads"], "sha256": one["sha256"],
            "size_bytes": one["size_bytes"], "outcome": "", "p50_ms": one["latency_ms"]["p50"], "accuracy": None,
        }
        for one in report["subjects"]
    ]  # fmt: skip


def from_gate(report: Mapping[str, Any], runtime: str) -> list[HistoryLine]:
    """Of every candidate, with the ratio to its reference."""
    return [
        {
            **_common("gate", report["machine"], report["versions"]["candidate"].get(runtime)),
            "recipe": row["recipe"], "target": report["target"], "runtime": runtime, "name": "candidate",
            "precision": row["candidate"]["precision"], "threads": report["threads"], "sha256": row["candidate"]["sha256"],
            "size_bytes": row["candidate"]["size_bytes"], "outcome": row["outcome"], "p50_ms": row["p50_ms"]["candidate"],
            "accuracy": row["accuracy"], "slower": row["latency"]["candidate"]["slower"],
        }
        for row in report["gates"]
    ]  # fmt: skip


def _common(kind: str, machine: Mapping[str, Any], version: str | None) -> dict[str, Any]:
    where = f"{machine['cpu']}, {machine['cores']} cores"
    return {"schema": SCHEMA, "at": files.utc_now(), "kind": kind, "machine": where, "version": version}
