"""A folder of maps: a file for each row."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adaptvis_vllm.maps.maps import Maps

SUFFIX = ".npz"
_SAFE = " !#$&'()+,;=@[]^`{}~"
_LONGEST = 200  # bytes of a name; file systems take 255


class MapFolder:
    """path: is made if it is not there. OSError where it cannot be."""

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path)
        self.folder.mkdir(parents=True, exist_ok=True)

    def file(self, row_id: Any) -> Path:
        """ID.npz. What no file name may hold is percent-encoded, and the end of a long id is its
        hash. Rows of one id share a file, which then has the maps of the one that ended last."""
        name = quote(str(row_id), safe=_SAFE)
        if name.startswith("."):
            name = "%2E" + name[1:]
        if len(name) > _LONGEST:
            name = name[:_LONGEST] + "-" + hashlib.sha256(str(row_id).encode()).hexdigest()[:16]
        return self.folder / (name + SUFFIX)

    def write(self, row_id: Any, maps: Maps) -> None:
        """All at once: a reader never finds half a file."""
        file = self.file(row_id)
        part = file.with_name(f".{os.getpid()}-{file.name[:_LONGEST]}.part")
        with part.open("wb") as out:
            maps.save(out)
        part.replace(file)
