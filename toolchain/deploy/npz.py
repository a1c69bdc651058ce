"""Named arrays as a .npz file whose bytes depend on them alone."""

import io
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def save(out: IO[bytes], named: Mapping[str, np.ndarray]) -> None:
    """Writes arrays; `np.savez` would stamp the time of day into the file."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(named):
            body = io.BytesIO()
            np.lib.format.write_array(body, np.ascontiguousarray(named[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", ZIP_EPOCH), body.getvalue(), zipfile.ZIP_DEFLATED)
