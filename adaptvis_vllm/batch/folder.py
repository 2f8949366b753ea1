"""A folder as an input: a row for each picture, and what of the rest was skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

NAMES = 5  # skipped ones that are named
HIDDEN = "hidden"
ENDING = "no picture by its ending"
FORMAT = "a format that vLLM does not read"
LINK = "a link to a folder"
NO_FILE = "no file that can be read"

# Why -> how many, and the first of them.
Skipped = Mapping[str, tuple[int, list[str]]]


def list_pictures(folder: Path, listing: Path) -> Skipped:
    """What was skipped. Writes {"id", "image"} rows to `listing`, unless it is there already.

    id: the path below `folder`; bytes in it that are not UTF-8 become \\x... ValueError if the
    folder has no pictures.
    """
    said = listing.with_suffix(".skipped.json")
    if listing.exists():
        found = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {}
        return {why: (count, names) for why, (count, names) in found.items()}
    skipped: dict[str, tuple[int, list[str]]] = {}
    rows = 0
    partial = listing.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8") as out:
        for path, why in _walk(folder, listing.parent):
            name = os.fsencode(path).decode(errors="backslashreplace")
            if why:
                count, names = skipped.get(why, (0, []))
                skipped[why] = count + 1, [*names, name][:NAMES]
            else:
                rows += 1
                out.write(json.dumps({"id": name, "image": path}) + "\n")
        out.flush()
        os.fsync(out.fileno())
    if not rows:
        raise ValueError(f"no pictures below {folder}{_told(skipped)}")
    said.write_text(json.dumps(skipped), encoding="utf-8")
    partial.replace(listing)
    return skipped


def sentences(skipped: Skipped) -> list[str]:
    """One a reason."""
    return [
        f"{count} skipped, {why}: {', '.join(names)}{', ..' if count > len(names) else ''}"
        for why, (count, names) in skipped.items()
    ]


def _told(skipped: Skipped) -> str:
    return "".join(f"; {sentence}" for sentence in sentences(skipped))


def _walk(top: Path, own: Path) -> Iterator[tuple[str, str]]:
    """(path below `top`, why it is skipped or "") of what is there. own: the job's folder."""
    read, known = endings()
    unreadable: list[str] = []
    for at, folders, files in os.walk(top, onerror=lambda e: unreadable.append(e.filename)):
        inside = os.path.relpath(at, top)
        inside = "" if inside == os.curdir else inside
        for name in sorted(files):
            path = os.path.join(inside, name)
            ending = os.path.splitext(name)[1].lower()
            if _hidden(name):
                yield path, HIDDEN
            elif ending not in read:
                yield path, FORMAT if ending in known else ENDING
            else:
                yield path, "" if os.path.isfile(os.path.join(at, name)) else NO_FILE
        for name in sorted(folders):
            here = os.path.join(at, name)
            why = HIDDEN if _hidden(name) else LINK if os.path.islink(here) else ""
            if why:
                yield os.path.join(inside, name), why
            if why or os.path.samefile(here, own):
                folders.remove(name)
        folders.sort()
    yield from ((os.path.relpath(path, top), NO_FILE) for path in unreadable)


def _hidden(name: str) -> bool:
    """macOS puts a file ._NAME beside each NAME on other file systems, and __MACOSX into ZIPs."""
    return name.startswith(".") or name == "__MACOSX"


def endings() -> tuple[set[str], set[str]]:
    """(of pictures that are read, of all that Pillow knows), in lower case, with the dot."""
    from PIL import Image
    from vllm.multimodal.image import ALLOWED_IMAGE_FORMATS

    known = Image.registered_extensions()
    formats = {*ALLOWED_IMAGE_FORMATS} & {*Image.OPEN} | {"MPO"}  # Pillow opens it as JPEG
    return {ending for ending, kind in known.items() if kind in formats}, {*known}
