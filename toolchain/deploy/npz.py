"""Write named arrays to a .npz file whose bytes depend only on the arrays."""

import io
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def save(out: IO[bytes], named: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name. `np.savez` is not used because it writes the current time into the file."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(named):
            body = io.BytesIO()
            np.lib.format.write_array(body, np.ascontiguousarray(named[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", ZIP_EPOCH), body.getvalue(), zipfile.ZIP_DEFLATED)
