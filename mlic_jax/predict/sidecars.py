"""Labels as keywords in XMP sidecars, the files beside photos that photo libraries read.

A sidecar is merged with what is there, and the photo never touched. Keywords of people stay; those
that were written here are noted in the sidecar, so that a later run takes back what no longer
holds.

Keywords are `dc:subject` (XMP specification part 1, section 8.3), all levels of a class name by
themselves. Where names have levels, as `animal|dog` or `animal/dog`, and where a sidecar has them
already, the lists of Lightroom and digiKam are written too: where such a list is there, its program
reads no other.
"""

import errno
import shutil
import xml.dom.minidom as minidom
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers.expat import ExpatError

from mlic_jax.data.image_files import printable
from mlic_jax.errors import reason
from mlic_jax.files.atomic import written_whole

SUFFIX = ".xmp"
LEVELS = "|/"  # what stands between the levels of a class name
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


class _List(NamedTuple):
    """A property of XMP that holds a list of keywords."""

    namespace: str
    name: str  # with the prefix that it has by custom


SUBJECT = _List("http://purl.org/dc/elements/1.1/", "dc:subject")
LIGHTROOM = _List("http://ns.adobe.com/lightroom/1.0/", "lr:hierarchicalSubject")
DIGIKAM = _List("http://www.digikam.org/ns/1.0/", "digiKam:TagsList")
# Of each, what was written here.
OURS = {
    kind: _List("urn:mlic_jax:1.0:", f"mlic:{kind.name.partition(':')[2]}")
    for kind in (SUBJECT, LIGHTROOM, DIGIKAM)
}
NO_PHOTOS = (".txt", ".json", ".xml", ".csv", ".md")  # may lie beside a photo, with its name

_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
    '<rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta>\n'
    '<?xpacket end="w"?>'
)


def write_sidecars(
    labels: Mapping[Path, Sequence[str]], class_names: Iterable[str]
) -> tuple[int, list[str]]:
    """Writes the labels of photos into the sidecars beside them.

    Args:
        labels: photo -> its labels; what it had of earlier runs and is not among them is taken
            back.
        class_names: of all labels.

    Returns:
        How many sidecars changed, and of each that cannot be read or written a few words.
    """
    has_levels = any(len(levels(name)) > 1 for name in class_names)
    changed, failed = 0, []
    for photo, names in labels.items():
        sidecar = photo.with_name(photo.name + SUFFIX)
        try:
            sidecar = sidecar_of(photo)
            before = sidecar.read_bytes() if sidecar.exists() else b""
            after = merged(before, names, has_levels)
            if after != before:
                _replace(sidecar, after)
                changed += 1
        except (OSError, ValueError, LookupError, RecursionError, ExpatError) as error:
            failed.append(f"{printable(sidecar)} ({reason(error)})")
    return changed, failed


def sidecar_of(photo: Path) -> Path:
    """`dog.jpg.xmp`, as digiKam, darktable and PhotoPrism have it.

    Or `dog.xmp`, as Lightroom and Bridge have it, where that is there and of no other photo.
    """
    whole, stem = photo.with_name(photo.name + SUFFIX), photo.with_suffix(SUFFIX)
    if whole.exists() or not stem.exists():
        return whole
    siblings = {
        path
        for path in photo.parent.iterdir()
        if path.stem == photo.stem and path.suffix.lower() not in NO_PHOTOS and path.is_file()
    }
    return stem if siblings <= {photo, stem} else whole


def _replace(sidecar: Path, content: bytes) -> None:
    """Writes a sidecar, or what its link points at; its mode stays.

    Raises:
        OSError: it is read-only, or cannot be written.
    """
    sidecar = sidecar.resolve()
    with written_whole(sidecar) as partial:
        partial.write_bytes(content)
        if sidecar.exists():
            if not sidecar.stat().st_mode & 0o222:
                raise PermissionError(errno.EACCES, "it is read-only", str(sidecar))
            shutil.copymode(sidecar, partial)


def levels(name: str) -> list[str]:
    """The levels of a class name, the root first; of one without levels itself."""
    for separator in LEVELS:
        name = name.replace(separator, LEVELS[0])
    return [level.strip() for level in name.split(LEVELS[0]) if level.strip()] or [name]


def merged(sidecar: bytes, labels: Sequence[str], has_levels: bool) -> bytes:
    """The bytes of a sidecar that has the keywords of labels, and those of earlier ones no more.

    Args:
        sidecar: as it is; empty: there is none.
        has_levels: the lists that have levels are wanted, even where there are none.

    Raises:
        ValueError, ExpatError: it is no XMP.
    """
    if not (sidecar or labels):
        return sidecar
    document = minidom.parseString(sidecar or _EMPTY.encode())
    packets = document.getElementsByTagNameNS(RDF, "RDF")
    if not packets:
        raise ValueError("it is XML and no XMP")
    packet = packets[0]
    before = {kind: _keywords(packet, kind) for kind in OURS}
    earlier = {kind: _keywords(packet, ours) or [] for kind, ours in OURS.items()}
    paths = [levels(label) for label in labels]
    wanted = {
        SUBJECT: [level for path in paths for level in path],
        LIGHTROOM: ["|".join(path) for path in paths],
        DIGIKAM: ["/".join(path) for path in paths],
    }
    changed: dict[_List, list[str]] = {}
    for kind, there in before.items():
        if kind is not SUBJECT and there is None:
            if not (has_levels and labels):
                continue
            # It would hide the plain keywords of people from its program, so it begins with them.
            keywords = [key for key in before[SUBJECT] or () if key not in earlier[SUBJECT]]
        else:
            keywords = [key for key in there or () if key not in earlier[kind]]
        added = [key for key in dict.fromkeys(wanted[kind]) if key not in keywords]
        for of, now, was in (
            (kind, keywords + added, there or []),
            (OURS[kind], added, earlier[kind]),
        ):
            if now != was:
                changed[of] = now
    for of, now in changed.items():
        _set_keywords(document, packet, of, now)
    return _serialised(document) if changed else sidecar


def _serialised(document: minidom.Document) -> bytes:
    """The bytes of a document, which can be read again; of line ends as they are meant.

    Raises:
        ExpatError: of a keyword with characters that XML has not.
    """
    escaped = {char: chr(0xF8F0 + number) for number, char in enumerate("\n\r\t")}
    nodes: list[minidom.Node] = [document]
    while nodes:
        node = nodes.pop()
        nodes += node.childNodes
        if isinstance(node, minidom.Element):
            for name, value in list(node.attributes.items()):
                node.setAttribute(name, "".join(escaped.get(char, char) for char in value))
        elif isinstance(node, minidom.Text):
            node.data = node.data.replace("\r", escaped["\r"])
    text = "\n".join(node.toxml() for node in document.childNodes)
    for char, stand_in in escaped.items():
        text = text.replace(stand_in, f"&#{ord(char)};")
    minidom.parseString(text.encode())
    return text.encode()


def _children(parent: minidom.Element, namespace: str, name: str) -> list[minidom.Element]:
    return [
        child
        for child in parent.childNodes
        if isinstance(child, minidom.Element)
        and (child.namespaceURI, child.localName) == (namespace, name)
    ]


def _find(packet: minidom.Element, kind: _List) -> minidom.Element | None:
    """The element of a list, which is in any of the descriptions of the photo."""
    for description in _children(packet, RDF, "Description"):
        if description.hasAttributeNS(kind.namespace, kind.name.partition(":")[2]):
            raise ValueError(f"its {kind.name} is no list, and is left as it is")
        for element in _children(description, kind.namespace, kind.name.partition(":")[2]):
            return element
    return None


def _keywords(packet: minidom.Element, kind: _List) -> list[str] | None:
    """What a list holds; None: there is none."""
    if (element := _find(packet, kind)) is None:
        return None
    items = [
        item
        for container in element.childNodes
        for item in container.childNodes
        if isinstance(item, minidom.Element)
    ]
    texts = [[of for of in item.childNodes if isinstance(of, minidom.Text)] for item in items]
    is_plain = not element.hasAttributeNS(RDF, "parseType") and all(
        item.localName == "li" and not item.attributes.length and len(of) == len(item.childNodes)
        for item, of in zip(items, texts, strict=True)
    )
    beside = [of.data for of in element.childNodes if isinstance(of, minidom.Text)]
    if not is_plain or "".join(beside).strip():
        raise ValueError(f"its {kind.name} is more than a list of words, and is left as it is")
    return ["".join(of.data for of in parts) for parts in texts]


def _set_keywords(
    document: minidom.Document, packet: minidom.Element, kind: _List, keywords: Sequence[str]
) -> None:
    """Puts a list in the place of that which is there; one without keywords is taken away."""
    if (there := _find(packet, kind)) is not None and there.parentNode is not None:
        there.parentNode.removeChild(there)
    if not keywords:
        return

    def of_rdf(name: str) -> minidom.Element:
        prefix = f"{packet.prefix}:" if packet.prefix else ""  # which is known there
        return document.createElementNS(RDF, f"{prefix}{name}")

    bag = of_rdf("Bag")
    for keyword in keywords:
        item = bag.appendChild(of_rdf("li"))
        item.appendChild(document.createTextNode(keyword))
    element = document.createElementNS(kind.namespace, kind.name)
    element.setAttribute(f"xmlns:{kind.name.partition(':')[0]}", kind.namespace)
    element.appendChild(bag)
    descriptions = _children(packet, RDF, "Description")
    parent = descriptions[0] if descriptions else packet.appendChild(of_rdf("Description"))
    parent.appendChild(element)
