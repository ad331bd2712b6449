"""The names in archives that people deploy in place of a checkpoint, and the file in them to deploy."""

import zlib
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from app.errors import plain

EXPECTED: Final = "a checkpoint such as learn.save('stage-2') writes was expected"
SAVE: Final = "fastai's learn.save('stage-2') writes the file to deploy"
WEIGHTS: Final = (".pth", ".pt", ".pkl", ".ckpt", ".bin", ".safetensors", ".onnx")  # files to deploy
COMPRESSED: Final = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}  # by the first bytes
MAX_UNPACKED: Final = 20_000_000  # bytes, to find names
SHOWN: Final = 5  # names of a list


def tar_content(path: Path, start: bytes) -> tuple[str, str] | None:
    """Return what a tar archive is and the remedy; None for a file that is none, with this start.

    Of a compressed one the first 20 MB are searched for names.
    """
    kind = next((kind for signature, kind in COMPRESSED.items() if start.startswith(signature)), "")
    if start[257:262] != b"ustar" and not kind:
        return None
    names = _tar_names(path, kind)
    if kind and not names:  # one compressed file
        return None
    return f"a tar archive of {listed(names)}", inside(names)


def _tar_names(path: Path, kind: str) -> list[str]:
    """Return the first names in a tar archive; none where it is damaged."""
    import tarfile  # a start needs it only if the file is one

    names: list[str] = []
    try:
        with tarfile.open(path, f"r|{kind}") as archive:  # type: ignore[call-overload]
            for member in islice(archive, SHOWN + 1):
                names.append(member.name)
                if kind and member.offset_data + member.size > MAX_UNPACKED:
                    break
    except (tarfile.TarError, ValueError, OSError, EOFError, zlib.error):
        pass
    return names


def inside(names: Collection[str]) -> str:
    """The remedy for an archive: the file in it that can be deployed."""
    found = next((name for name in names if name.endswith(WEIGHTS)), "")
    return f"unpack it and deploy {plain(found, 80)}" if found else SAVE


def listed(names: Sequence[str]) -> str:
    """Show the first of many names."""
    shown = ", ".join(plain(name, 60) for name in names[:SHOWN])
    return f"{shown or 'nothing'}, ..." if len(names) > SHOWN else shown or "nothing"
