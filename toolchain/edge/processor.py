"""Which processor this is and what its vector instructions are: standard library only, so that it runs on a board too."""

import hashlib
import os
import platform
from pathlib import Path

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
VNNI_FLAGS = {"avx512_vnni", "avx_vnni"}


def describe() -> dict[str, str | int]:
    """Processor, its vector instructions, cores and system; part of the key of everything timed."""
    model = platform.processor() or platform.machine()
    flags, fields = set[str](), dict[str, str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", fields.get("Features", "")).split())
    part = [fields[name] for name in ("CPU implementer", "CPU part") if name in fields] if flags else []
    board = _first_line(Path("/proc/device-tree/model"))  # ARM's Linux names no processor, but the board
    model = ", ".join(one for one in (board, model, *part) if one)
    isa = " ".join(flag for flag in ISA_FLAGS if flag in flags)
    system = f"{platform.system()} {platform.machine()}"
    found: dict[str, str | int] = {"cpu": model, "isa": isa, "cores": os.cpu_count() or 1, "system": system}
    if own := _first_line(
        Path("/etc/machine-id")
    ):  # two of a kind are two machines; which one it is nobody needs to know
        found["machine"] = hashlib.sha256(own.encode()).hexdigest()[:8]
    return found


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
