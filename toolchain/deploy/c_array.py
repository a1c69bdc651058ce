"""Write a model file as a C array, for firmware that links its model statically."""

from pathlib import Path

from toolchain.core import files

FILE_NAMES = ("model_data.c", "model_data.h")
BYTES_PER_LINE = 20
HEADER_TEMPLATE = """\
/* The model of this bundle, {name}: {size} bytes, SHA-256 {digest}. */
#ifndef MODEL_DATA_H
#define MODEL_DATA_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char model_data[];
extern const size_t model_data_size;

#ifdef __cplusplus
}}
#endif

#endif
"""
SOURCE_TEMPLATE = """\
#include "model_data.h"

#if defined(__GNUC__)
__attribute__((aligned(64))) /* flatbuffers and vector loads want it */
#endif
const unsigned char model_data[{size}] = {{
{rows}
}};
const size_t model_data_size = {size};
"""


def write(model: Path, folder: Path) -> tuple[Path, ...]:
    """Write `model_data.c` and `model_data.h` with the bytes of a file, and return their paths in this order."""
    body = model.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(body), BYTES_PER_LINE)
    rows = [",".join(map(str, body[start : start + BYTES_PER_LINE])) + "," for start in starts]
    source, header = (folder / name for name in FILE_NAMES)
    files.write_text(source, SOURCE_TEMPLATE.format(size=len(body), rows="\n".join(rows)))
    digest = files.sha256_file(model)
    files.write_text(header, HEADER_TEMPLATE.format(name=model.name, size=len(body), digest=digest))
    return source, header
