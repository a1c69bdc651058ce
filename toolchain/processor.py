"""Which processor this is and what its vector instructions are: standard library only, so that it runs on a board too."""

import os
import platform
from pathlib import Path

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
VNNI = {"avx512_vnni", "avx_vnni"}


def describe() -> dict[str, str | int]:
    """Processor, its vector instructions, cores and system; part of the key of everything timed."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", fields.get("Features", "")).split())
    isa = " ".join(flag for flag in ISA_FLAGS if flag in flags)
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": model, "isa": isa, "cores": os.cpu_count() or 1, "system": system}
