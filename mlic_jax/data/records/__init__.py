"""One schema for every data set: a Source is prepared once into ArrayRecord, a Split reads it.

A prepared set is a folder `<prepared_dir>/<name>/` in the layout of TensorFlow Datasets (readable
by `tfds.builder_from_directory`), plus of every split a small `index_<split>.npz` with the image
ids and labels, so that counting positives reads no images; `prepared.json`, how its images are to
be seen; and what it was made from, `annotations.json` and `stamps_<split>.npz`, so that it is
noticed when that changes; and in the folder `pixels` squashed photos, where they are to be kept.
TensorFlow is imported neither to write nor to read.

The feature dict of a record:
  image     encoded bytes exactly as the source had them
  image_id  text, unique in its split
  labels    int8 [C] in {+1 present, -1 absent, 0 unknown}
  objects   sequence of {boxes int32 [4] (y1, x1, y2, x2; exclusive, in pixels), classes}
  height, width  int32, of the decoded image

Examples keep the order of their source, so the position of an image in a split never changes.
"""

from mlic_jax.data.records.preparing import prepare
from mlic_jax.data.records.reading import Split, open_split
from mlic_jax.data.records.schema import Example, RandomAccess, Record, Source

__all__ = ["Example", "RandomAccess", "Record", "Source", "Split", "open_split", "prepare"]
