"""Makes own data ready to train on: a prepared set, a data card, a recipe, and the commands.

    mlic prepare --images FOLDER --name mydata
    mlic prepare --images photos --annotations labels.csv --name mydata \
        --init-from weights/mobilenet_v2

The same is `python scripts/prepare_data.py` in a checkout.

Formats: COCO's JSON, XML of VOC and CVAT, YOLO's text files, tables of images and labels (CSV,
Parquet, Excel, JSON Lines), JSON of Label Studio, labelme, VIA, VoTT, CreateML and MMPretrain,
folders or lists by class, CelebA, NUS-WIDE, Apparel, datasets of Hugging Face.
The format is told from the files; --dry-run says what was told. Labels may be unknown: `?` in a
CSV, crowds in COCO, difficult objects in VOC. A set without splits of its own is divided into train
and val, or with --val-share and --test-share into three; what a set has splits for is left alone.

Written to --output: `<name>.py`, the recipe; `data_card.html`, a page to read first, and the same
as JSON; `label_graph.npz` and, where there are any, `word_vectors.npz`, for MSRN.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.config_checks import check_config
from mlic_jax.config_paths import seen_from
from mlic_jax.data import (
    card,
    co_occurrence,
    corrections,
    label_tree,
    plan,
    sources,
    word_vectors,
)
from mlic_jax.data.detect import FORMATS, detect
from mlic_jax.data.image_files import is_image
from mlic_jax.data.kept_labels import keep_labels
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Source, open_split, prepare
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.prepare.recipe import (
    RECIPE,
    command_lines,
    digest_of,
    place_of_recipe,
    recipe_text,
)
from mlic_jax.prepare.settings import (
    LABEL_POLICY,
    VAL_SHARE,
    configured,
    data_settings,
    origin,
    start_settings,
    train_settings,
)
from mlic_jax.reports import data_card

# Options of sources that are told from the files if nobody says them.
TOLD = (
    ("image_column", "NAME", "tables: the column of the photos; default: told"),
    ("label_column", "NAME", "tables: the column of labels, or attributes: colour,shape"),
    ("cell_separator", "TEXT", "tables: what is between labels in a cell; default: told"),
    ("sheet", "NAME", "xlsx: the sheet; default: the first"),
    ("label_separator", "TEXT", "folders: between labels in a name, as _ in red_shirt"),
    ("crowds", "WHAT", "coco: objects with iscrowd are `unknown`, or `present` as CVAT means it"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="prepare_data.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images",
        metavar="DIR",
        required=True,
        help="the folder of images, or of everything; for COCO also a pattern with {split}; "
        "hf:owner/name[:configuration] for a dataset of the Hub, hf:FOLDER for one in a folder",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="the annotations: a file, or a pattern with {split}; for VOC and YOLO a folder; "
        "default: looked for in --images",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: told from the files")
    parser.add_argument("--name", help="of the prepared set: a-z, 0-9 and _")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be read, from where, and with which labels; write nothing",
    )
    for option, metavar, meaning in TOLD:
        parser.add_argument(f"--{option.replace('_', '-')}", metavar=metavar, help=meaning)
    parser.add_argument(
        "--merge-classes",
        action="store_true",
        help="classes whose names differ in case, blanks, _ and - alone are one",
    )
    parser.add_argument(
        "--split",
        type=float,
        metavar="SHARE",
        help="the share of train, where the set has no splits of its own and is divided in two; "
        "default 0.8",
    )
    for role, more in (("val", f"; default {VAL_SHARE:g} where there is a test"), ("test", "")):
        parser.add_argument(
            f"--{role}-share",
            type=float,
            metavar="SHARE",
            help=f"the share of the images, or of those of the set's own train, that is divided "
            f"from them for {role}, where the set has no split for it{more}; 0: none",
        )
    parser.add_argument("--seed", type=int, default=0, help="of these divisions; default 0")
    parser.add_argument(
        "--keep-unlabelled",
        action="store_true",
        help="coco, nuswide: keep images that no annotation mentions, as showing none of the "
        "classes; the other formats always do",
    )
    parser.add_argument(
        "--on-corrupt",
        choices=("fail", "skip"),
        default="fail",
        help="what to do about images that cannot be read; default fail",
    )
    parser.add_argument("--prepared-dir", metavar="DIR", default="prepared")
    parser.add_argument("--output", metavar="DIR", help="default own/NAME")
    parser.add_argument(
        "--word-vectors",
        metavar="FILE",
        help="for MSRN: a text file of GloVe, `package` or `none`; default: the package "
        f"{word_vectors.PACKAGE}, if it is installed",
    )
    parser.add_argument(
        "--init-from", metavar="DIR", help="weights to start from; without them, a small network"
    )
    parser.add_argument("--image-size", type=int, help="default 256, or 96 without weights")
    parser.add_argument("--epochs", type=int, help="default: by the number of images")
    parser.add_argument(
        "--keep-labels",
        type=float,
        metavar="SHARE",
        help="the share of the labels that training is given, for studies with fewer; default all",
    )
    parser.add_argument(
        "--one-positive",
        action="store_true",
        default=None,
        help="training is given one of the labels that are present in a photo",
    )
    parser.add_argument(
        "--dropped-labels",
        choices=("absent", "unknown"),
        help="what the labels are that are not kept; default absent",
    )
    parser.add_argument(
        "--label-tree",
        metavar="FILE",
        help="rules `dog < animal`, one a line: what shows a child shows its parents, in labels "
        "and in predictions",
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if not (options.name or options.dry_run):
        raise UsageError("the following arguments are required: --name; see --help")
    options.name = options.name or "dry_run"
    told = {option: getattr(options, option) for option, *_ in TOLD}
    told = {option: value for option, value in told.items() if value is not None}
    layout = detect(options.images, options.annotations, options.format, told)
    try:
        settings = data_settings(options, layout) | start_settings(options)
        check_config(configured(settings))
        source = sources.create(DataOptions.of(configured(settings).data))
        if not source.class_names:
            raise Failure("no photo has a label")
        label_tree.of_options(DataOptions.of(configured(settings).data), source.class_names)
        for split in source.splits:
            source.examples(split)
    except Failure as error:
        was = "as said" if options.format else f"told from {layout.seen}"
        raise Failure(f"{error} (read as {layout.format}, {was}; see --format)") from None
    decided = plan.decisions(layout, source, options.format is not None)
    decided += plan.unused(source, settings["data.splits"])
    print("\n".join(decided))
    if options.dry_run:
        print("\n".join(plan.preview(layout, source, settings["data.splits"], origin(settings))))
        return
    vectors = find_word_vectors(options.word_vectors, source.class_names)

    folder = prepare(source, options.prepared_dir, options.on_corrupt, upright=True)
    output = Path(options.output or Path("own", options.name))
    settings["data.corrections"] = os.path.abspath(output / corrections.FILE)
    roles = settings["data.splits"]
    data = DataOptions.of(configured(settings).data)
    as_annotated = {split: open_split(folder, split) for split in dict.fromkeys(roles.values())}
    people = corrections.of_file(as_annotated, data.corrections)
    splits = sources.with_labels(as_annotated, data)
    train = splits[roles["train"]]
    if vectors:  # a set that was prepared before keeps its spelling of merged classes
        vectors = dataclasses.replace(vectors, class_names=train.class_names)
    kept = keep_labels(train, data)

    graph_file, vectors_file = output / "label_graph.npz", output / "word_vectors.npz"
    settings |= train_settings(kept, settings)
    settings["data.label_graph"] = os.path.abspath(graph_file)
    settings["data.word_vectors"] = os.path.abspath(vectors_file) if vectors else "one_hot"
    check_config(configured(settings))
    recipe = place_of_recipe(output, options.name)
    commands = command_lines(recipe, options.name, roles, images_folder(settings))

    described = card.describe(splits, count_unlisted(source, settings), data)
    described |= {"decided": decided, "corrections": people.described()}
    held_out = [split for split in splits.values() if split is not train]
    page = data_card.render_page(described, roles, train, commands, held_out)
    try:
        co_occurrence.from_split(kept, LABEL_POLICY).save(graph_file)
        if vectors:
            vectors.save(vectors_file)
        text = recipe_text(recipe, settings, train, roles, commands)
        described |= {"roles": roles, RECIPE: digest_of(text)}
        write_text(output / "data_card.json", json.dumps(described, indent=1))
        write_text(output / "data_card.html", page)
        write_text(recipe, text)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from error
    print_summary(described, roles, recipe, commands, settings)


# --- checks and looks at the data


def find_word_vectors(option: str | None, class_names: Sequence[str]) -> WordVectors | None:
    """The vectors of the classes, those without a known word 0; None where there are none.

    Raises:
        UsageError: they were asked for, and the file or package is missing or knows no class.
        Failure: the file is not GloVe's.
    """
    if option == "none":
        return None
    try:
        if option in (None, "package"):
            vectors = word_vectors.from_package(class_names, allow_missing=True)
        else:
            vectors = word_vectors.from_glove(option, class_names, allow_missing=True)
    except UsageError as error:
        if option is not None:
            raise
        print(f"word vectors: none, so one_hot for MSRN ({error})")
        return None
    unknown = ", ".join(vectors.unknown)
    told = f"; 0 for {unknown}, of which no word is known" if unknown else ""
    print(f"word vectors: of {vectors.source}{told}")
    return vectors


def images_folder(settings: Mapping[str, Any]) -> Path:
    """The folder of the images that are measured on, as a command is to name it here.

    `PHOTOS`, to be filled in, if they are in no folder.
    """
    if settings["data.source"] == "hub":
        return Path("PHOTOS")
    folder = os.path.join(settings["data.root"], settings.get("data.image_dir", ""))
    # What is divided from train lies among the images of train.
    own = [role for role in ("val", "test") if f"data.{role}_share" not in settings]
    split = settings["data.splits"][(*own, "train")[0]]
    return Path(seen_from(".", folder.replace("{split}", split)))


def count_unlisted(source: Source, settings: Mapping[str, Any]) -> int:
    """The image files that are in no split, though they lie where those of the splits do."""
    if settings["data.source"] == "hub":
        return 0
    listed = {example.image for split in source.splits for example in source.examples(split)}
    pattern = str(Path(settings["data.root"], settings.get("data.image_dir", "")))
    roots = {Path(pattern.replace("{split}", split)) for split in source.splits}
    files = {file for root in roots for file in root.rglob("*") if is_image(file)}
    return len(files - listed)


# --- what is written


def print_summary(
    described: Mapping[str, Any],
    roles: Mapping[str, str],
    recipe: Path,
    commands: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """What there is, what to beware of, and what to do next."""
    print()
    for split, part in described["splits"].items():
        used_for = ", ".join(role for role in roles if roles[role] == split)
        labels = sum(part["positives"]) / part["images"]
        print(f"{split} ({used_for}): {part['images']:,} images, {labels:.1f} labels each")
    names = described["class_names"]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    print(f"{len(names)} classes: {shown}")
    for kind, text in card.findings(described, roles):
        print(f"{kind}: {text}")
    if "init_from" not in settings:
        print(
            "note: without --init-from a small network starts from nothing; a few hundred photos "
            "ask for pretrained weights, see the README"
        )
    print(f"\ndata card: {recipe.parent / 'data_card.html'}; recipe: {recipe}\n")
    for what, command in commands.items():
        print(f"# {what}\n{command}")
