"""CelebA's text files: attributes, splits, and what is refused."""

import pytest

from mlic_jax.errors import Failure

NAMES = ["Bald", "Big_Nose", "Young"]
VALUES = {"000001.jpg": "-1  1  1", "000002.jpg": " 1 -1 -1", "000003.jpg": "-1 -1 -1"}
LABELS = [{"Big_Nose", "Young"}, {"Bald"}, set()]
PARTITION = "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n"


def attributes(count=3, names=NAMES, values=VALUES):
    rows = [f"{photo} {cells}" for photo, cells in values.items()]
    return "\r\n".join([str(count), " ".join(names) + " ", *rows]) + "\r\n"


@pytest.mark.parametrize(
    ("of_attributes", "of_splits", "photos"),
    [
        ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba/{}"),
        (
            "Anno/list_attr_celeba.txt",
            "Eval/list_eval_partition.txt",
            "Img/img_align_celeba/{}",
        ),
        ("faces.txt", "list_eval_partition.txt", "{}"),
    ],
)
def test_attributes_and_splits(plant, read_own, of_attributes, of_splits, photos):
    photos = [photos.format(name) for name in VALUES]
    own = read_own(plant({of_attributes: attributes(), of_splits: PARTITION}, photos))
    assert own.layout.format == "celeba" and own.source.class_names == tuple(NAMES)
    expected = dict(zip(photos, LABELS, strict=True))
    splits = zip(("train", "val", "test"), expected.items(), strict=True)
    assert own.of == {split: dict([item]) for split, item in splits}
    files = {file.name for file in own.source.annotation_files}
    assert files == {of_attributes.rpartition("/")[2], "list_eval_partition.txt"}


def test_without_splits(plant, read_own):
    folder = plant({"attributes.txt": attributes()}, VALUES)
    own = read_own(folder, "attributes.txt", "celeba")
    assert own.own_splits == () and own.labels == dict(zip(VALUES, LABELS, strict=True))


@pytest.mark.parametrize(
    ("text", "partition", "message"),
    [
        (attributes(count=4), "", "by its first line it is of 4 photos, and it has 3"),
        (attributes(count="many"), "", "its first line must be the number of photos"),
        (attributes(names=["Bald", "Bald", "Young"]), "", "names of the attributes, each once"),
        (attributes(names=NAMES[:2]), "", "line 3: it must be a photo, and 1 or -1 for each of 2"),
        (attributes(values=VALUES | {"000003.jpg": "1 1 2"}), "", "line 5: it must be a photo"),
        (attributes(4) + "000001.jpg 1 1 1\n", "", "000001.jpg is listed already, in .*line 3"),
        (attributes(0, values={}), "", "no image is listed"),
        ("", "", "its first line must be"),
        (attributes(), PARTITION[:26], "line 5: 000003.jpg is not in list_eval_partition.txt"),
        (attributes(), PARTITION.replace("2\n", "3\n"), "line 3: it must be a photo, and 0"),
        (attributes(), PARTITION + "000001.jpg 2", "line 4: 000001.jpg is listed already, in ano"),
    ],
)
def test_what_is_refused(plant, read_own, text, partition, message):
    files = {"list_attr_celeba.txt": text}
    files |= {"list_eval_partition.txt": partition} if partition else {}
    with pytest.raises(Failure, match=message) as failure:
        read_own(plant(files, VALUES))
    assert "\n" not in str(failure.value)
