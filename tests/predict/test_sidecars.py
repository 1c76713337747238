"""Keywords beside photos: merged with what people have, taken back when they no longer hold."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from mlic_jax.predict.sidecars import levels, merged, sidecar_of, write_sidecars

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
LIGHTROOM = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"
DIGIKAM = "{http://www.digikam.org/ns/1.0/}TagsList"

OF_PEOPLE = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <r:Description r:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>
  <r:Description r:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:subject><r:Bag><r:li>holiday</r:li><r:li>dog</r:li></r:Bag></dc:subject>
   <!-- of mine -->
  </r:Description>
 </r:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def keywords(sidecar: bytes, name: str = SUBJECT) -> list[str] | None:
    element = ET.fromstring(sidecar).find(f".//{name}")
    return None if element is None else [item.text for item in element.iter(f"{RDF}li")]


def test_a_new_sidecar_has_the_labels():
    assert keywords(merged(b"", ["dog", "a & <b>"], has_levels=False)) == ["dog", "a & <b>"]
    assert merged(b"", [], has_levels=False) == b""


def test_keywords_and_all_else_of_people_stay():
    sidecar = merged(OF_PEOPLE, ["cat", "dog"], has_levels=False)
    assert keywords(sidecar) == ["holiday", "dog", "cat"]
    for kept in (b'xmp:Rating="4"', b"<!-- of mine -->", b'<?xpacket end="w"?>'):
        assert kept in sidecar
    # `dog` was theirs before, so it is not taken back.
    assert keywords(merged(sidecar, [], has_levels=False)) == ["holiday", "dog"]


def test_what_no_longer_holds_is_taken_back():
    first = merged(b"", ["dog", "person"], has_levels=False)
    assert keywords(merged(first, ["person", "car"], has_levels=False)) == ["person", "car"]
    assert keywords(merged(first, [], has_levels=False)) is None


def test_what_holds_already_changes_no_byte():
    sidecar = merged(OF_PEOPLE, ["dog", "cat"], has_levels=True)
    assert merged(sidecar, ["dog", "cat"], has_levels=True) == sidecar


def test_names_with_levels_are_written_as_lightroom_and_digikam_have_them():
    sidecar = merged(OF_PEOPLE, ["animal|cat", "indoor/sofa"], has_levels=True)
    assert keywords(sidecar) == ["holiday", "dog", "animal", "cat", "indoor", "sofa"]
    # A list that is new hides the plain keywords, so it holds them too.
    assert keywords(sidecar, LIGHTROOM) == ["holiday", "dog", "animal|cat", "indoor|sofa"]
    assert keywords(sidecar, DIGIKAM) == ["holiday", "dog", "animal/cat", "indoor/sofa"]
    assert keywords(merged(OF_PEOPLE, ["cat"], has_levels=False), DIGIKAM) is None


def test_a_list_of_levels_that_is_there_gets_plain_labels_too():
    there = merged(b"", ["animal|cat"], has_levels=True)
    sidecar = merged(there, ["dog"], has_levels=False)
    assert keywords(sidecar, LIGHTROOM) == keywords(sidecar, DIGIKAM) == ["dog"]


@pytest.mark.parametrize(
    "name, expected",
    [("dog", ["dog"]), ("a | b/c", ["a", "b", "c"]), ("/a|", ["a"]), ("|", ["|"])],
)
def test_levels(name, expected):
    assert levels(name) == expected


def test_where_a_sidecar_lies(tmp_path):
    photo, whole, stem = (tmp_path / name for name in ("a.jpg", "a.jpg.xmp", "a.xmp"))
    photo.touch()
    assert sidecar_of(photo) == whole
    stem.touch()
    assert sidecar_of(photo) == stem
    (tmp_path / "a.txt").touch()  # no photo
    assert sidecar_of(photo) == stem
    raw = tmp_path / "a.nef"  # whose sidecar that may be
    raw.touch()
    assert sidecar_of(photo) == whole
    raw.unlink()
    whole.touch()
    assert sidecar_of(photo) == whole


def test_what_is_no_sidecar_is_left_and_named(tmp_path):
    contents = {"a.jpg": b"<html/>", "b.jpg": b"<x:xmp", "c.jpg": None}
    for name, content in contents.items():
        (tmp_path / name).touch()
        if content is not None:
            (tmp_path / f"{name}.xmp").write_bytes(content)
    changed, failed = write_sidecars(
        {photo: ["dog"] for photo in sorted(tmp_path.glob("*.jpg"))}, ["dog"]
    )
    assert changed == 1
    assert ["no XMP" in failed[0], "b.jpg.xmp" in failed[1], len(failed)] == [True, True, 2]
    assert (tmp_path / "a.jpg.xmp").read_bytes() == b"<html/>"
    assert keywords((tmp_path / "c.jpg.xmp").read_bytes()) == ["dog"]


def test_a_keyword_of_people_in_another_list_stays():
    """They have `cat` among those with levels alone; here it comes to the plain ones."""
    their_list = b"""<lr:hierarchicalSubject xmlns:lr="http://ns.adobe.com/lightroom/1.0/">
        <r:Bag><r:li>cat</r:li></r:Bag></lr:hierarchicalSubject>"""
    people = OF_PEOPLE.replace(b"<!-- of mine -->", their_list)
    added = merged(people, ["cat"], has_levels=False)
    assert keywords(added) == ["holiday", "dog", "cat"]
    removed = merged(added, [], has_levels=False)
    assert (keywords(removed), keywords(removed, LIGHTROOM)) == (["holiday", "dog"], ["cat"])


def test_any_prefix_and_line_ends_in_attributes():
    sidecar = (
        OF_PEOPLE.replace(b"<r:", b"<").replace(b"</r:", b"</").replace(b"xmlns:r=", b"xmlns=")
    )
    sidecar = sidecar.replace(b' r:about=""', b"").replace(b'"4"', b'"one&#xA;two&#13;"')
    added = merged(sidecar, ["cat"], has_levels=False)
    assert keywords(added) == ["holiday", "dog", "cat"]
    (rating,) = (
        value
        for part in ET.fromstring(added).iter()
        for name, value in part.items()
        if "Rat" in name
    )
    assert rating == "one\ntwo\r"


@pytest.mark.parametrize(
    "other",
    [
        b'<r:li r:parseType="Resource"><r:value>holiday</r:value></r:li>',
        b'<r:li xml:lang="en">holiday</r:li>',
    ],
)
def test_keywords_that_are_more_than_words_are_left(other):
    with pytest.raises(ValueError, match="more than a list of words"):
        merged(OF_PEOPLE.replace(b"<r:li>holiday</r:li>", other), ["cat"], has_levels=False)


def test_other_forms_of_keywords_are_left():
    attribute = OF_PEOPLE.replace(b"<dc:subject>", b"<dc:title>").replace(
        b"</dc:subject>", b"</dc:title>"
    )
    attribute = attribute.replace(b'elements/1.1/">', b'elements/1.1/" dc:subject="mine">')
    with pytest.raises(ValueError, match="no list"):
        merged(attribute, ["cat"], has_levels=False)
    with pytest.raises(ValueError, match="more than a list"):
        merged(OF_PEOPLE.replace(b"<dc:subject>", b"<dc:subject>mine"), ["cat"], has_levels=False)


def test_mode_and_link_of_a_sidecar_stay_and_odd_ones_stop_no_other(tmp_path):
    names = [f"{name}.jpg" for name in "abcde"] + ["f" * 250 + ".jpg"]
    photos = [tmp_path / name for name in names]
    for photo in photos:
        photo.touch()
    private, closed, linked, odd = (tmp_path / f"{name}.jpg.xmp" for name in "abcd")
    for sidecar in (private, closed, tmp_path / "elsewhere"):
        sidecar.write_bytes(OF_PEOPLE)
    private.chmod(0o600)
    closed.chmod(0o444)
    linked.symlink_to("elsewhere")
    odd.write_bytes(b'<?xml version="1.0" encoding="foo-bar"?><a/>')
    changed, failed = write_sidecars({photo: ["cat"] for photo in photos}, ["cat"])
    assert changed == 3 and len(failed) == 3
    assert [name[-30:] in " ".join(failed) for name in ("b.jpg.xmp", "d.jpg.xmp")] == [True, True]
    assert private.stat().st_mode & 0o777 == 0o600 and linked.is_symlink()
    assert "cat" in keywords((tmp_path / "elsewhere").read_bytes())
    assert keywords((tmp_path / "e.jpg.xmp").read_bytes()) == ["cat"]
    assert "control" not in failed
    assert write_sidecars({tmp_path / "e.jpg": ["a\x01b"]}, ["a\x01b"])[0] == 0


def test_exiftool_reads_them(tmp_path):
    if shutil.which("exiftool") is None:
        pytest.skip("needs exiftool (Debian: libimage-exiftool-perl)")
    sidecar = tmp_path / "a.jpg.xmp"
    sidecar.write_bytes(merged(OF_PEOPLE, ["animal|cat"], has_levels=True))

    def asked(*options: str) -> dict:
        command = ["exiftool", "-j", "-G1", *options, str(sidecar)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]

    assert asked("-validate", "-warning", "-a")["ExifTool:Validate"] == "OK"
    read = asked()
    assert read["XMP-dc:Subject"] == ["holiday", "dog", "animal", "cat"]
    assert read["XMP-lr:HierarchicalSubject"] == ["holiday", "dog", "animal|cat"]
    assert read["XMP-digiKam:TagsList"] == ["holiday", "dog", "animal/cat"]
    assert read["XMP-xmp:Rating"] == 4
