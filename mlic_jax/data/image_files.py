"""Files of images: which ones they are, how they are named to people, and reading them."""

import os
import re
import stat
from functools import cache
from pathlib import Path

from PIL import Image

from mlic_jax.errors import Failure

# What a line of text would not show as it is: control characters, what else ends a line, what
# Python puts for bytes that are no UTF-8; and the backslash, with which they are written.
_UNPRINTABLE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_JUNK = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",
    "lost+found",
    "icon\r",
}
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def _register_heic() -> bool:
    """Has Pillow read HEIC, the format of iPhones, where the extra `heic` is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


READS_HEIC = _register_heic()
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


def lacks_heic(encoded: bytes) -> bool:
    """Whether these bytes are a HEIC image, which Pillow alone does not read."""
    return not READS_HEIC and encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIC_BRANDS


@cache
def image_suffixes() -> frozenset[str]:
    """The endings of names, `.jpg` and so on, of the image formats that Pillow reads, and HEIC's.

    Without the extra `heic` its files are images all the same, which say what they need.
    """
    Image.init()
    # Pillow knows a few formats by name alone, videos among them.
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and Image.MIME.get(kind, "image/").startswith("image/")
    ) | {".mpo", ".heic", ".heif"}


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image; hidden files have none."""
    return path.suffix.lower() in image_suffixes() and not is_junk(path)


def is_junk(path: Path) -> bool:
    """Whether a file or folder is hidden, or left by an operating system or, as ~$, by Excel."""
    return path.name.startswith((".", "~$")) or path.name.lower() in _JUNK


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without junk.

    Raises:
        OSError: it cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not is_junk(path))


def printable(name: str | bytes | os.PathLike[str]) -> str:
    r"""A file's name as one line of text that UTF-8 can hold; no two names have the same.

    Control characters and bytes that are not UTF-8 become `\xe9`, byte for byte, and a backslash
    is doubled. All other names stay as they are.
    """
    return _UNPRINTABLE.sub(_escaped, os.fsdecode(name))


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character == "\\":
        return r"\\"
    try:
        return "".join(rf"\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # half a surrogate pair, which only a table can have, and no file
        return rf"\u{ord(character):04x}"


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. What is none, and might never end, is not waited for.

    Raises:
        Failure: a folder, a pipe, a socket or a device, or a link to nothing.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        if not path.is_symlink():
            raise
        raise Failure(f"a link to {printable(os.readlink(path))}, which is not there") from None
    if kind in _KINDS:
        raise Failure(f"{_KINDS[kind]} and no file")
    return path.read_bytes()
