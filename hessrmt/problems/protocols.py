"""Files of torch in pickle protocols 3 to 5, as torch.load(weights_only=True) can read them: in 2.

Instructions are translated one by one; none is executed.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, cast
from zipfile import ZipFile, ZipInfo, is_zipfile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PICKLED = "data.pkl"
"""Member of a checkpoint of torch that says which tensors there are."""

OLD_FORMAT = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Near the beginning of files of torch's older format: a pickled number."""

PICKLES = 5
"""In torch's older format, before the numbers: that one, version, system, object, storages."""

_MOST_INSTRUCTIONS, _LONGEST_NAME = 10_000_000, 1000
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_PUTS = {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


def is_old_format(start: bytes) -> bool:
    """Whether a file is one of torch's older format.

    Args:
        start: Its first 32 bytes.

    Returns:
        Whether it begins as one, in any protocol.
    """
    return start[:1] == b"\x80" and OLD_FORMAT in start


def is_newer(path: Path) -> bool:
    """Whether a file of torch is of a protocol that torch doesn't read safely.

    Args:
        path: The file, zip or old format.

    Returns:
        Whether it has to be read :func:`in_protocol_2`.
    """
    if is_zipfile(path):
        with ZipFile(path) as archive:
            for member in _unchecked(archive):
                if member.filename.rpartition("/")[2] == PICKLED:
                    with archive.open(member) as file:
                        return _is_newer(file.read(2))
        return False
    with path.open("rb") as file:
        start = file.read(32)
    return _is_newer(start) and is_old_format(start)


def _is_newer(start: bytes) -> bool:
    return start[:1] == b"\x80" and start[1:2] > b"\2"


def in_protocol_2(path: Path) -> IO[bytes]:
    """A file of torch in main memory, its pickles translated.

    Args:
        path: The file, zip or old format.

    Returns:
        The same content for torch.load.

    Raises:
        UnpicklingError: If a pickle isn't one that torch.save writes.
    """
    made = BytesIO()
    if is_zipfile(path):
        with ZipFile(path) as archive, ZipFile(made, "w") as new:
            for member in _unchecked(archive):
                raw: bytes | bytearray = archive.read(member)
                if member.filename.rpartition("/")[2] == PICKLED:
                    raw = _translated(BytesIO(raw))
                new.writestr(member.filename, bytes(raw))
    else:
        with path.open("rb") as file:
            for _ in range(PICKLES):
                made.write(_translated(file))
            made.write(file.read())
    made.seek(0)
    return made


def _unchecked(archive: ZipFile) -> list[ZipInfo]:
    """Members without checksums, which torch may have left out, and others have compared."""
    members = archive.infolist()
    for member in members:
        del member.CRC
    return members


def _translated(file: IO[bytes]) -> bytearray:
    """The pickle that begins here, in protocol 2; the file is left behind it."""
    # Protocol 4 puts the two names of a class on the stack, protocol 2 has them in the instruction:
    # the last two texts are taken back, and where one is needed later, it is written then.
    made = bytearray(b"\x80\2")
    memo: dict[int, str | None] = {}
    taken_back: set[int] = set()
    texts: list[tuple[int, str, list[int]]] = []  # on top of the stack: place, text, memo's places
    instructions = cast("Iterable[tuple[Any, Any, int]]", pickletools.genops(file))
    for count, (opcode, argument, start) in enumerate(instructions):
        name = opcode.name
        if count > _MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"more than {_MOST_INSTRUCTIONS:,} pickle instructions")
        if name in {"PROTO", "FRAME"}:
            continue
        if name in _PUTS:
            place = len(memo) if name == "MEMOIZE" else int(argument)
            memo[place] = texts[-1][1] if texts else None
            taken_back.discard(place)
            if texts:
                texts[-1][2].append(place)
            made += b"r" + struct.pack("<I", place)
            continue
        known = memo.get(int(argument)) if name in _GETS else None
        if known is not None and int(argument) in taken_back:
            place = int(argument)
            taken_back.discard(place)
            texts = [*texts[-1:], (len(made), known, [place])]
            made += _text(known) + b"r" + struct.pack("<I", place)
        elif known is not None:
            texts = [*texts[-1:], (len(made), known, [])]
            made += b"j" + struct.pack("<I", int(argument))
        elif name in _TEXTS:
            texts = [*texts[-1:], (len(made), argument, [])]
            made += _text(argument)
        elif name == "STACK_GLOBAL":
            names = [text for _, text, _ in texts]
            if len(names) < 2 or any("\n" in n or len(n) > _LONGEST_NAME for n in names):
                raise pickle.UnpicklingError("a class without two names")
            del made[texts[0][0] :]
            taken_back.update(*(places for _, _, places in texts))
            made += b"c" + "\n".join([*names, ""]).encode()
            texts = []
        else:
            texts = []
            made += _bytes(argument) if name in _BYTES else _same(file, start)
    return made


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _bytes(raw: bytes) -> bytes:
    """Bytes as Python 3 writes them in protocol 2: a call that makes them of text."""
    return b"c_codecs\nencode\n" + _text(raw.decode("latin1")) + _text("latin1") + b"\x86R"


def _same(file: IO[bytes], start: int) -> bytes:
    """An instruction that was just read, as it is."""
    end = file.tell()
    file.seek(start)
    return file.read(end - start)
