"""Splits in files beside the annotations: Kaggle's CelebA, and NIH's lists."""

import pytest

from mlic_jax.errors import Failure

PHOTOS = ["a.jpg", "b.jpg", "c.jpg"]
CELEBA = "image_id,Smiling,Young\na.jpg,1,-1\nb.jpg,-1,1\nc.jpg,1,1\n"
PARTITION = "image_id,partition\na.jpg,0\nb.jpg,1\nc.jpg,2\n"
NIH = "Image Index,Finding Labels\na.jpg,Mass|Edema\nb.jpg,Edema\nc.jpg,Mass\n"


@pytest.mark.parametrize("annotations", [None, "list_attr_celeba.csv"])
def test_the_partition_of_kaggles_celeba(plant, read_own, annotations):
    files = {"list_attr_celeba.csv": CELEBA, "list_eval_partition.csv": PARTITION}
    own = read_own(plant(files, PHOTOS), annotations)
    assert own.of == {
        "train": {"a.jpg": {"Smiling"}},
        "val": {"b.jpg": {"Young"}},
        "test": {"c.jpg": {"Smiling", "Young"}},
    }


def test_the_lists_of_nih(plant, read_own):
    lists = {"train_val_list.txt": "a.jpg\nb.jpg\n", "test_list.txt": "c.jpg"}
    own = read_own(plant({"Data_Entry_2017.csv": NIH} | lists, PHOTOS))
    train = {"a.jpg": {"Edema", "Mass"}, "b.jpg": {"Edema"}}
    assert own.of == {"train": train, "test": {"c.jpg": {"Mass"}}}


@pytest.mark.parametrize(
    ("partition", "line"),
    [
        (PARTITION.replace("c.jpg,2\n", ""), "c.jpg is not in list_eval_partition.csv, which has"),
        (PARTITION.replace("c.jpg,2", "c.jpg,3"), "line 4: it must be a photo, and 0 .train."),
        (PARTITION + "a.jpg,2\n", "line 5: a.jpg is listed already, in another split"),
    ],
)
def test_a_partition_that_does_not_fit(plant, read_own, partition, line):
    files = {"list_attr_celeba.csv": CELEBA, "list_eval_partition.csv": partition}
    with pytest.raises(Failure, match=line):
        read_own(plant(files, PHOTOS))
