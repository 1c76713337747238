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
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.config import IMAGENET_MEAN, IMAGENET_STD, check_config, default_config
from mlic_jax.config_paths import beside, is_path, seen_from
from mlic_jax.data import card, co_occurrence, plan, sources, word_vectors
from mlic_jax.data.detect import FORMATS, Layout, detect, own_roles, roles_of
from mlic_jax.data.image_files import is_image
from mlic_jax.data.records import Source, Split, open_split, prepare
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.reports import data_card

LABEL_POLICY = "ignore"  # what is unknown of own data is neither learned nor measured
# Options of sources that are told from the files if nobody says them.
TOLD = (
    ("image_column", "NAME", "tables: the column of the photos; default: told"),
    ("label_column", "NAME", "tables: the column of labels, or attributes: colour,shape"),
    ("cell_separator", "TEXT", "tables: what is between labels in a cell; default: told"),
    ("sheet", "NAME", "xlsx: the sheet; default: the first"),
    ("label_separator", "TEXT", "folders: between labels in a name, as _ in red_shirt"),
    ("crowds", "WHAT", "coco: objects with iscrowd are `unknown`, or `present` as CVAT means it"),
)
VAL_SHARE = 0.15  # of the images to train on, for a set with a test and nothing to choose on
FINE_TUNED_FROM = 2000  # images to train on; with fewer a pretrained backbone stays as it is

_COMMENTS = {
    "init_prior": "the share of the labels that are present",
    "freeze_statistics": "with few images the backbone stays as it is",
    "model.threshold": "coarse maps: regions with some margin",
    "optim.multipliers.features": "0 freezes",
    "optim.reference_classes": "the rate goes with the number of classes, see optim.rate_scale",
    "eval.top_n": "more regions than in training",
}


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
        source = sources.create(configured(settings).data)
        if not source.class_names:
            raise Failure("no photo has a label")
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
    roles = settings["data.splits"]
    splits = {split: open_split(folder, split) for split in dict.fromkeys(roles.values())}
    train = splits[roles["train"]]

    output = Path(options.output or Path("own", options.name))
    graph_file, vectors_file = output / "label_graph.npz", output / "word_vectors.npz"
    settings |= train_settings(train, settings)
    settings["data.label_graph"] = os.path.abspath(graph_file)
    settings["data.word_vectors"] = os.path.abspath(vectors_file) if vectors else "one_hot"
    check_config(configured(settings))
    recipe = output / f"{options.name}.py"
    commands = command_lines(recipe, options.name, roles, images_folder(settings))

    described = card.describe(splits, count_unlisted(source, settings)) | {"decided": decided}
    held_out = [split for split in splits.values() if split is not train]
    page = data_card.render_page(described, roles, train, commands, held_out)
    try:
        co_occurrence.from_split(train, LABEL_POLICY).save(graph_file)
        if vectors:
            vectors.save(vectors_file)
        write_text(output / "data_card.json", json.dumps(described | {"roles": roles}, indent=1))
        write_text(output / "data_card.html", page)
        write_text(recipe, recipe_text(recipe, settings, train, roles, commands))
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from error
    print_summary(described, roles, output, commands, settings)


# --- the configuration, as option -> value of what differs from the default


def configured(settings: Mapping[str, Any]) -> ConfigDict:
    """The default configuration with other values."""
    config = default_config()
    for option, value in settings.items():
        *parents, last = option.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
    return config


def data_settings(options: argparse.Namespace, layout: Layout) -> dict[str, Any]:
    """Where the data lie and how they are divided.

    Raises:
        UsageError: a value is out of range, or the splits of the set have no roles.
        Failure: the annotations are malformed.
    """
    settings: dict[str, Any] = {
        "data.source": layout.format,
        "data.name": options.name,
        "data.prepared_dir": os.path.abspath(options.prepared_dir),
        "data.on_corrupt": options.on_corrupt,
        "data.upright": True,
    }
    settings |= {f"data.{option}": value for option, value in layout.options.items()}
    if options.keep_unlabelled:
        settings["data.keep_unlabelled"] = True
    if options.merge_classes:
        settings["data.merge_classes"] = True
    source = sources.create(configured(settings | {"data.splits": {}}).data)
    return settings | division_settings(options, source.own_splits)


def division_settings(options: argparse.Namespace, own_splits: Sequence[str]) -> dict[str, Any]:
    """The splits of a set, by role; what is divided, and how.

    A set without splits is divided into train and val, or where a share of val or test is asked
    for, into these and train. Of one with splits, those that it lacks are divided from its train:
    a val always, where there is a test, and else what is asked for.

    Raises:
        UsageError: a share is out of range, or does not count; the splits have no roles.
    """
    if options.split is not None and not 0 < options.split < 1:
        raise UsageError(f"--split is {options.split:g}; it must be between 0 and 1")
    own, shares = own_roles(own_splits), {"val": options.val_share, "test": options.test_share}
    for role, share in shares.items():
        if share is not None and not 0 <= share < 1:
            raise UsageError(f"--{role}-share is {share:g}; it must be 0, or between 0 and 1")
        if share and role in own:
            raise UsageError(f"--{role}-share does not count: the set has {own[role]} for {role}")
    by_shares = any(share is not None for share in shares.values())
    if own_splits and options.split is not None:
        print(f"--split does not count: the set has the splits {', '.join(own_splits)}")
    elif options.split is not None and by_shares:
        raise UsageError(
            "--split is for two splits; beside --val-share or --test-share leave it out"
        )
    seed = {"data.split_seed": options.seed}
    if not (own_splits or by_shares):
        share = 0.8 if options.split is None else options.split
        return {"data.train_share": share, **seed, "data.splits": roles_of(())}
    if shares["val"] is None and "val" not in own and ("test" in own or shares["test"]):
        shares["val"] = VAL_SHARE
    settings = {f"data.{role}_share": share for role, share in shares.items() if share}
    if settings:
        settings |= seed
    if not own_splits:
        settings["data.train_share"] = 1.0  # of which the others are divided
    divided = [role for role, share in shares.items() if share]
    return settings | {"data.splits": roles_of(own_splits or ("train",), divided)}


def origin(settings: Mapping[str, Any]) -> str:
    """Where the splits come from, in words."""
    divided = [role for role in ("val", "test") if f"data.{role}_share" in settings]
    if "data.train_share" in settings:
        return "none of its own, it is divided"
    return "the set's own" + "".join(f", and {role} divided from train" for role in divided)


def start_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What training starts from, as far as it is known before the data are.

    Raises:
        UsageError: there are no such weights.
    """
    usual_size = 256 if options.init_from else 96
    size = usual_size if options.image_size is None else options.image_size
    settings: dict[str, Any] = {"data.image_size": size}
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    if not options.init_from:
        return settings
    from mlic_jax.runtime.checkpoint import find_checkpoint, read_metadata  # takes seconds

    metadata = read_metadata(find_checkpoint(options.init_from))
    model = metadata["config"]["model"] if "config" in metadata else {"backbone": metadata["arch"]}
    settings |= {
        "init_from": os.path.abspath(options.init_from),
        "model.backbone": model["backbone"],
        "model.width": float(model.get("width", 1.0)),
    }
    preprocessing = metadata.get("preprocessing", {})
    for statistic, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        value = tuple(preprocessing.get(statistic, usual))
        if value != usual:
            settings[f"augment.{statistic}"] = value
    return settings


def train_settings(train: Split, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe for a training split: that of configs/mcar_custom.py, or of mcar_scenes.py."""
    labels, classes = train.labels(), len(train.class_names)
    few = len(train) < FINE_TUNED_FROM
    pretrained = "init_from" in settings
    prior = np.mean(labels[labels != 0] > 0) if (labels != 0).any() else 0.5
    epochs = settings.get("epochs", (30 if few else 15) * (1 if pretrained else 2))
    result: dict[str, Any] = {
        "epochs": epochs,
        "init_prior": round(float(np.clip(prior, 0.01, 0.99)), 3),
        "loss.label_policy": LABEL_POLICY,
        "model.top_n": min(2, classes),
        "model.threshold": 0.3,
        "optim.schedule": "cosine",
        "optim.warmup_epochs": min(1.0, epochs / 2),
        "eval.label_policy": LABEL_POLICY,
        "eval.top_n": min(4, classes),
        "eval.every": max(1, epochs // 6),
    }
    if classes < 20:
        result["model.pool_ratio"] = math.ceil(100 / classes) / 100  # one group, for MSRN
    if pretrained:
        return result | {
            "model.pooling": "avg",
            "data.train_crop": "random_resized_crop",
            "freeze_statistics": few,
            "optim.learning_rate": 0.3,
            "optim.reference_classes": 80,
            # A backbone serves all classes: its rate is 0.003, however many there are.
            "optim.multipliers.features": 0.0 if few else round(0.8 / classes, 6),
        }
    return result | {
        "model.backbone": "resnet10",
        "model.width": 0.25,
        "augment.jitter": 0.1,
        "optim.name": "adamw",
        "optim.learning_rate": 5e-3,
        "optim.weight_decay": 1e-2,
        "optim.multipliers.features": 1.0,
    }


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
    unknown = [name for name, words in zip(class_names, vectors.words, strict=True) if not words]
    told = f"; 0 for {', '.join(unknown)}, of which no word is known" if unknown else ""
    print(f"word vectors: of {vectors.source}{told}")
    return vectors


def images_folder(settings: Mapping[str, Any]) -> Path:
    """The folder of the images that are measured on, as a command is to name it here.

    `photos`, if they are in no folder.
    """
    if settings["data.source"] == "hub":
        return Path("photos")
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


def command_lines(
    recipe: Path, name: str, roles: Mapping[str, str], images: Path
) -> dict[str, str]:
    """What each command is for -> the command, for a shell."""

    def line(*words: str | Path) -> str:
        return shlex.join(["python", "-m", "mlic_jax.main", *map(str, words)])

    run = ("--workdir", f"runs/{name}")
    # Where there is no split to spare, it has to be said that the operating point is of test.
    allowed = ("--config.calibration.allow_test=True",) if roles["val"] == roles["test"] else ()
    return {
        "train": line("--config", recipe, *run),
        "evaluate": line("--mode", "evaluate", *run),
        "calibrate": line("--mode", "calibrate", *run, *allowed),
        "predict": line(
            *("--mode", "predict", "--checkpoint", f"runs/{name}"),
            *("--images", images, "--out", f"runs/{name}/predictions"),
        ),
    }


def recipe_text(
    recipe: Path,
    settings: Mapping[str, Any],
    train: Split,
    roles: Mapping[str, str],
    commands: Mapping[str, str],
) -> str:
    """The recipe, a Python file as those in configs/, with paths relative to itself."""
    held_out = roles["val"] if roles["val"] == roles["test"] else f"{roles['val']}, {roles['test']}"
    start, msrn = "from random initialisation", "--config.model.name=msrn"
    if "init_from" in settings:  # at a rate that MSRN's dense layers do not bear
        start = "from pretrained weights"
        msrn += " --config.optim.name=adamw --config.optim.learning_rate=0.001"
    said = "\n\n".join(f"    {command}" for command in commands.values())
    docstring = (
        f"MCAR on {train.name}, {start}: {len(train.class_names)} classes, {len(train)} images to "
        f"train on.\n\n{said}\n\nValidated and evaluated on {held_out}. MSRN, with the label graph "
        f"beside this file: {msrn} and\nanother --workdir. Paths are relative to this file. "
        "Written by scripts/prepare_data.py;\nevery option is in mlic_jax/config.py."
    )
    docstring = docstring.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    lines = []
    for option in sorted(settings, key=_section):
        comment = f"  # {_COMMENTS[option]}" if option in _COMMENTS else ""
        value = _literal(settings[option])
        if is_path(option, settings[option]):
            value = f"beside(__file__, {_literal(seen_from(recipe.parent, settings[option]))})"
        lines.append(f"    config.{option} = {value}{comment}\n")
    return (
        f'"""{docstring}\n"""\n\n'
        "from ml_collections import ConfigDict\n\n"
        "from mlic_jax.config import apply_variant, default_config\n"
        f"from {beside.__module__} import beside\n\n\n"
        "def get_config(variant: str | None = None) -> ConfigDict:\n"
        f'    """The recipe that prepare_data.py chose for {len(train)} images."""\n'
        "    config = default_config()\n"
        f"{''.join(lines)}"
        "    return apply_variant(config, variant)\n"
    )


def _section(option: str) -> int:
    """Where the recipe has an option: those of no section first."""
    section = option.split(".")[0] if "." in option else ""
    return ("", "model", "data", "augment", "loss", "optim", "eval").index(section)


def _literal(value: Any) -> str:
    """A value as Python code."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        items = (f"{_literal(key)}: {_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    return repr(value)


def print_summary(
    described: Mapping[str, Any],
    roles: Mapping[str, str],
    output: Path,
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
    print(f"\ndata card: {output / 'data_card.html'}; recipe: {output / described['name']}.py\n")
    for what, command in commands.items():
        print(f"# {what}\n{command}")
