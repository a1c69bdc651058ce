"""Describe this machine's processor and its vector instructions. Standard library only, so that it runs on a board too."""

import hashlib
import os
import platform
from pathlib import Path

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
VNNI_FLAGS = {"avx512_vnni", "avx_vnni"}


def describe() -> dict[str, str | int]:
    """Return processor, vector instructions, cores and system; part of the cache key of everything that is timed."""
    model = platform.processor() or platform.machine()
    flags, fields = set[str](), dict[str, str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", fields.get("Features", "")).split())
    part_numbers = [fields[name] for name in ("CPU implementer", "CPU part") if name in fields] if flags else []
    board = _read_text(Path("/proc/device-tree/model"))  # Linux on ARM names the board, not the processor
    model = ", ".join(name for name in (board, model, *part_numbers) if name)
    isa = " ".join(flag for flag in ISA_FLAGS if flag in flags)
    system = f"{platform.system()} {platform.machine()}"
    description: dict[str, str | int] = {"cpu": model, "isa": isa, "cores": os.cpu_count() or 1, "system": system}
    # tells two machines of one model apart; hashed, so that a report does not identify the machine
    if machine_id := _read_text(Path("/etc/machine-id")):
        description["machine"] = hashlib.sha256(machine_id.encode()).hexdigest()[:8]
    return description


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
