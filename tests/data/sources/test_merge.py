"""Classes that differ in spelling alone."""

import numpy as np

from mlic_jax.data.sources.merge import Merged, alike

TEXT = "image,labels\na.jpg,Dog;hot dog?\nb.jpg,dog ?;Hot_Dog\nc.jpg,cat\nd.jpg,dog?;DOG?\n"


def test_names_that_are_alike():
    names = ["Dog", "cat", "dog", "hot dog", "Hot-Dog", "hotdog"]
    assert alike(names) == [["Dog", "dog"], ["cat"], ["hot dog", "Hot-Dog"], ["hotdog"]]


def test_merged(plant, read_own):
    own = read_own(plant({"l.csv": TEXT}, [f"{i}.jpg" for i in "abcd"]))
    assert own.source.class_names == ("DOG", "Dog", "Hot_Dog", "cat", "dog", "hot dog")
    merged = Merged(own.source)
    assert merged.class_names == ("Dog", "Hot_Dog", "cat")
    assert merged.own_splits == own.own_splits
    assert merged.description["merge_classes"]
    labels = {
        example.image_id: example.labels.tolist()
        for split in merged.splits
        for example in merged.examples(split)
    }
    assert labels == {
        "a.jpg": [1, 0, -1],
        "b.jpg": [0, 1, -1],
        "c.jpg": [-1, -1, 1],
        "d.jpg": [0, -1, -1],
    }
    assert "one class, named Dog as in the most photos: DOG, Dog, dog" in merged.notes


def test_the_commonest_spelling_names_the_class(plant, read_own):
    labels = ("Dog;Ant", "dog?", "dog;ant", "cat", "dog;Ant?")
    text = "".join(f"{i}.jpg,{of}\n" for i, of in enumerate(labels))
    photos = [f"{i}.jpg" for i in range(len(labels))]
    own = read_own(plant({"l.csv": f"image,labels\n{text}"}, photos))
    assert own.source.class_names == ("Ant", "Dog", "ant", "cat", "dog")
    merged = Merged(own.source)
    assert merged.class_names == ("Ant", "dog", "cat")  # of as many photos the first
    told = {e.image_id: e.labels.tolist() for s in merged.splits for e in merged.examples(s)}
    assert told["0.jpg"] == [1, 1, -1] and told["4.jpg"] == [0, 1, -1]
    assert "one class, named dog as in the most photos: Dog, dog" in merged.notes


def test_boxes_of_merged_classes(plant, read_own):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    xml = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("dog", "ant", "Dog"))
    own = read_own(plant({"a.xml": f"<annotation>{xml}</annotation>"}, ["a.jpg"]))
    (example,) = [e for split in own.source.splits for e in Merged(own.source).examples(split)]
    names = Merged(own.source).class_names
    assert names == ("Dog", "ant")
    assert Merged(own.source).notes == ("one class, named Dog as in the most photos: Dog, dog",)
    np.testing.assert_array_equal(example.box_classes, [0, 1, 0])
