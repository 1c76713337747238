"""Own data in one command: what it writes and says, what it refuses, and that its commands work."""

import csv
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.checkpoint_config import set_up
from mlic_jax.config_checks import check_config
from mlic_jax.data import co_occurrence, corrections, label_inputs, sources, word_vectors
from mlic_jax.data.options import DataOptions
from mlic_jax.data.scenes import CLASS_NAMES, render
from mlic_jax.models import create_model
from mlic_jax.prepare import own_data, settings
from mlic_jax.runtime.checkpoint import read_metadata, save_weights
from mlic_jax.scores.files import Scores
from mlic_jax.scores.scoring import create_eval_model
from mlic_jax.train import resume, start
from mlic_jax.train.loop import train
from mlic_jax.train.optim import OptimOptions, create_optimizer, rate_scale
from mlic_jax.train.options import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_data.py"
COLOURS = ("blue", "green", "red")
GLOVE = "blue 1 0 0\ngreen 0 1 0\nthing 1 1 0\n"


@pytest.fixture(scope="module")
def run(load_script):
    return load_script(SCRIPT)


def _scene(i):
    """The image; of each colour 1 (present), 0 (absent) or ?; and (colour, is unsure, box)s."""
    scene = render(7, "own", i)
    labels = {
        colour: int(scene.labels[[name.startswith(colour) for name in CLASS_NAMES]].max())
        for colour in COLOURS
    }
    unsure = COLOURS[i // 4 % 3] if i % 4 == 0 else None  # as if nobody could tell
    cells = {
        colour: "0" if label < 0 else "?" if label == 0 or colour == unsure else "1"
        for colour, label in labels.items()
    }
    named = [CLASS_NAMES[c].split()[0] for c in scene.box_classes]
    objects = [
        (colour, int(cells[colour] == "?"), box)
        for colour, box in zip(named, scene.boxes.tolist(), strict=True)
        if colour in COLOURS
    ]
    return scene.image, cells, objects


def write_csv_set(folder, images):
    """`photos/` and `labels.csv` with a column a class."""
    (folder / "photos").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *COLOURS])
        for i in range(images):
            image, cells, _ = _scene(i)
            (folder / "photos" / f"{i}.jpg").write_bytes(image)
            writer.writerow([f"{i}.jpg", *cells.values()])
    return folder


def write_voc_set(folder, images):
    """`JPEGImages/` and `Annotations/`."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for i in range(images):
        image, _, objects = _scene(i)
        (folder / "JPEGImages" / f"{i}.jpg").write_bytes(image)
        xml = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
            f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for name, difficult, (y1, x1, y2, x2) in objects
        )
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{xml}</annotation>")
    return folder


def read_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed_commands(output):
    return [line for line in output.splitlines() if line.startswith(("python -m", "mlic "))]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A set of 20 images in a CSV, below the folder that commands are given in."""
    monkeypatch.chdir(tmp_path)
    return write_csv_set(tmp_path / "data", 20)


# --- what is written


def test_what_it_writes(run, table, capsys):
    assert run("--images", "data", "--name", "ours", "--word-vectors", "none") == 0
    said = capsys.readouterr().out
    assert "format csv, told from labels.csv" in said
    assert "train (train): 16 images" in said and "val (val, test): 4 images" in said
    assert "3 classes: blue, green, red" in said and "note: without --init-from" in said
    names = {path.name for path in Path("own/ours").iterdir()}
    assert names == {"ours.py", "data_card.html", "data_card.json", "label_graph.npz"}

    recipe = read_module(Path("own/ours/ours.py"))
    config = recipe.get_config()
    check_config(config)
    splits = sources.open_splits(
        DataOptions.of(config.data)
    )  # the prepared set is the recipe's own
    assert splits["train"].directory == table.parent / "prepared" / "ours"
    assert [len(splits[role]) for role in ("train", "val", "test")] == [16, 4, 4]
    assert config.data.root == str(table) and config.data.word_vectors == "one_hot"
    assert config.loss.label_policy == config.eval.label_policy == "ignore"
    labels = splits["train"].labels()
    assert config.init_prior == round((labels == 1).sum() / (labels != 0).sum(), 3)
    assert recipe.get_config("resnet18,128").model.backbone == "resnet18"

    graph = co_occurrence.load(config.data.label_graph)
    assert (graph.set_name, graph.split) == ("ours", "train")
    np.testing.assert_array_equal(graph.class_counts, (labels == 1).sum(axis=0))

    card = json.loads(Path("own/ours/data_card.json").read_text())
    assert card["roles"] == {"train": "train", "val": "val", "test": "val"}
    assert card["splits"]["train"]["images"] == 16
    page = Path("own/ours/data_card.html").read_text()
    commands = printed_commands(said)
    assert len(commands) == 4 and all(command in recipe.__doc__ for command in commands)
    assert all(command in page for command in commands)
    assert commands == [
        "python -m mlic_jax.main --config own/ours/ours.py --workdir runs/ours",
        "python -m mlic_jax.main --mode evaluate --workdir runs/ours",
        "python -m mlic_jax.main --mode calibrate --workdir runs/ours "
        "--config.calibration.allow_test=True",
        "python -m mlic_jax.main --mode predict --checkpoint runs/ours --images data/photos "
        "--out runs/ours/predictions",
    ]


def test_a_recipe_of_fewer_labels(run, table):
    """Of all that is made of the labels to train on; the prepared set has them all."""
    request = ("--images", "data", "--name", "ours", "--word-vectors", "none")
    assert run(*request, "--keep-labels", "0.5", "--dropped-labels", "unknown") == 0
    config = read_module(Path("own/ours/ours.py")).get_config()
    check_config(config)
    data = DataOptions.of(config.data)
    assert (data.keep_labels, data.one_positive, data.dropped_labels) == (0.5, False, "unknown")
    splits = sources.open_splits(data), sources.open_to_train(data)
    everything, kept = (split["train"].labels() for split in splits)
    assert (everything == 0).sum() < (kept == 0).sum()
    graph = co_occurrence.load(config.data.label_graph)
    np.testing.assert_array_equal(graph.class_counts, (kept == 1).sum(axis=0))
    assert config.init_prior == round((kept == 1).sum() / (kept != 0).sum(), 3)
    card = json.loads(Path("own/ours/data_card.json").read_text())
    assert card["kept"]["positives"] == (kept == 1).sum(axis=0).tolist()
    assert card["splits"]["train"]["positives"] == (everything == 1).sum(axis=0).tolist()


def test_a_recipe_with_a_label_tree(run, table):
    request = ("--images", "data", "--name", "ours", "--word-vectors", "none")
    Path("tree.txt").write_text("green < blue\n")
    assert run(*request, "--label-tree", "tree.txt") == 0
    assert 'label_tree = beside(__file__, "../../tree.txt")' in Path("own/ours/ours.py").read_text()
    config = read_module(Path("own/ours/ours.py")).get_config()
    check_config(config)
    assert config.eval.consistent
    splits = sources.open_splits(DataOptions.of(config.data))
    blue, green, _ = splits["train"].labels().T
    assert (blue[green == 1] == 1).all() and (blue == 1).sum() > (green == 1).sum()
    graph = co_occurrence.load(config.data.label_graph)
    assert graph.class_counts[0] == (blue == 1).sum()
    card = json.loads(Path("own/ours/data_card.json").read_text())
    assert card["label_tree"]["rules"] == [["green", "blue"]]
    assert card["splits"]["train"]["positives"][0] == (blue == 1).sum()


def test_what_people_say_stands_beside_a_label_tree(run, table):
    request = ("--images", "data", "--name", "ours", "--word-vectors", "none")
    Path("tree.txt").write_text("green < blue\n")
    assert run(*request, "--label-tree", "tree.txt") == 0
    config = read_module(Path("own/ours/ours.py")).get_config()
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    position = int(np.flatnonzero(split.labels()[:, 1] == 1)[0])
    photo = split.image_id(position)
    answer = corrections.Answer(photo, "train", "blue", "absent", "anna", corrections.now())
    corrections.append(config.data.corrections, [answer])
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    assert split.labels()[position, :2].tolist() == [-1, 1]


def test_a_label_tree_of_other_labels(run, table, capsys):
    Path("tree.txt").write_text("gren < blue\n")
    request = ("--images", "data", "--name", "ours", "--word-vectors", "none")
    assert run(*request, "--label-tree", "tree.txt") == 2
    assert "line 1: no label 'gren'; did you mean 'green'?" in capsys.readouterr().err
    assert not Path("prepared").exists()  # it is said before photos are read


def test_no_path_of_the_recipe_is_of_this_machine(run, table):
    assert run("--images", "data", "--name", "ours", "--word-vectors", "none") == 0
    text = Path("own/ours/ours.py").read_text()
    assert str(table.parent) not in text
    assert 'config.data.root = beside(__file__, "../../data")\n' in text
    assert 'config.data.prepared_dir = beside(__file__, "../../prepared")\n' in text
    assert 'config.data.label_graph = beside(__file__, "label_graph.npz")\n' in text
    for file in Path("prepared/ours").glob("*.json"):
        assert str(table.parent) not in file.read_text()


def test_what_is_prepared_and_trained_moves(run, table, tmp_path, fresh_run, monkeypatch, capsys):
    """Data, prepared set, recipe and run as one folder, used from another one."""
    arguments = ("--images", "data", "--name", "ours", "--word-vectors", "none")
    assert run(*arguments, "--prepared-dir", "ready", "--image-size", "32") == 0
    config = read_module(tmp_path / "own" / "ours" / "ours.py").get_config()
    config.model.update({"name": "pooled", "backbone": "resnet10", "width": 0.125})
    workdir = Path("runs", "ours")
    save_weights(workdir / "checkpoints" / "1", *fresh_run(config, workdir))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("data", "ready", "own", "runs"):
        (tmp_path / name).rename(moved / name)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    capsys.readouterr()

    recipe = read_module(moved / "own" / "ours" / "ours.py").get_config()
    setup = set_up(None, moved / workdir)  # the checkpoint alone, without the recipe
    assert not setup.overrides and setup.workdir == moved / workdir
    for data in (recipe.data, setup.config.data):
        paths = data.root, data.prepared_dir, data.label_graph
        names = "data", "ready", "own/ours/label_graph.npz"
        assert paths == tuple(str(moved / name) for name in names)
        split = sources.open_splits(DataOptions.of(data))["train"]
        assert (split.directory, capsys.readouterr().out) == (moved / "ready" / "ours", "")
    recipe.model = config.model
    now = resume.run_metadata(recipe, split, moved / workdir)
    assert resume.check_resumable(read_metadata(setup.path), now, setup.path, 9) == {}
    assert list(Path().iterdir()) == []


def test_splits_of_its_own(run, table, capsys):
    lines = (table / "labels.csv").read_text().splitlines()
    splits = ["split"] + ["train"] * 10 + ["valid"] * 6 + ["test"] * 4
    text = "\n".join(f"{line},{split}" for line, split in zip(lines, splits, strict=True))
    (table / "labels.csv").write_text(text)
    assert run("--images", "data", "--name", "ours", "--split", "0.5") == 0
    said = capsys.readouterr().out
    assert "--split does not count: the set has the splits test, train, valid" in said
    assert "valid (val): 6 images" in said and "test (test): 4 images" in said
    assert "allow_test" not in said and "serves as" not in said
    splits = sources.open_splits(
        DataOptions.of(read_module(Path("own/ours/ours.py")).get_config().data)
    )
    assert [len(splits[role]) for role in ("train", "val", "test")] == [10, 6, 4]


def _with_splits(table, **sizes):
    """Gives the photos of a table splits, so many of each."""
    lines = (table / "labels.csv").read_text().splitlines()
    splits = ["split", *(split for split, size in sizes.items() for _ in range(size))]
    text = "\n".join(f"{line},{split}" for line, split in zip(lines, splits, strict=True))
    (table / "labels.csv").write_text(text)


def _opened():
    return sources.open_splits(
        DataOptions.of(read_module(Path("own/ours/ours.py")).get_config().data)
    )


def test_three_splits(run, table, capsys):
    arguments = ("--images", "data", "--name", "ours", "--val-share", "0.2", "--test-share", "0.3")
    assert run(*arguments, "--dry-run") == 0
    said = capsys.readouterr().out
    told = "train is divided by a hash with the seed 0, fair to rare labels: 0.3 for test and 0.2"
    assert told in said and "splits: none of its own, it is divided" in said
    assert "train (train): 10 photos" in said and "test (test): 6 photos" in said
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert told in said and "serves as" not in said and "allow_test" not in said
    splits = _opened()
    assert [len(splits[role]) for role in ("train", "val", "test")] == [10, 4, 6]
    photos = {splits[role].image_id(i) for role in splits for i in range(len(splits[role]))}
    assert photos == {f"{i}.jpg" for i in range(20)}
    card = json.loads(Path("own/ours/data_card.json").read_text())
    assert card["roles"] == {"train": "train", "val": "val", "test": "test"}
    assert any(told in sentence for sentence in card["decided"])
    assert told in Path("own/ours/data_card.html").read_text()


def test_val_is_divided_from_train_where_there_is_a_test(run, table, capsys):
    _with_splits(table, train=14, test=6)
    assert run("--images", "data", "--name", "ours") == 0
    said = capsys.readouterr().out
    assert "0.15 for val; 0.85 stay train" in said and "serves as" not in said
    splits = _opened()
    assert [len(splits[role]) for role in ("train", "val", "test")] == [12, 2, 6]
    test = splits["test"]
    assert {test.image_id(i) for i in range(6)} == {f"{i}.jpg" for i in range(14, 20)}
    assert run("--images", "data", "--dry-run", "--val-share", "0") == 0
    said = capsys.readouterr().out
    assert "test (val, test): 6 photos" in said and "there is no split for val" in said


def test_a_set_without_a_test_says_what_divides_one(run, table, capsys):
    _with_splits(table, train=14, val=6)
    assert run("--images", "data", "--dry-run") == 0
    assert "there is no split for test: val serves as validation" in capsys.readouterr().out
    assert run("--images", "data", "--dry-run", "--test-share", "0.15") == 0
    said = capsys.readouterr().out
    assert "splits: the set's own, and test divided from train" in said
    assert "val (val): 6 photos" in said and "test (test): 2 photos" in said


def test_a_class_too_small_for_every_split_is_said(run, table, capsys):
    lines = (table / "labels.csv").read_text().splitlines()
    rare = [f"{line},{'rare' if i == 0 else int(i == 1)}" for i, line in enumerate(lines)]
    (table / "labels.csv").write_text("\n".join(rare))
    arguments = ("--images", "data", "--name", "ours", "--val-share", "0.2", "--test-share", "0.2")
    assert run(*arguments, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "val shows no photo of rare" in said and "test shows no photo of rare" in said
    assert "train shows no photo" not in said
    assert run(*arguments) == 0
    assert "problem: test shows no image of rare: they have no AP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "options", "message"),
    [
        (False, "--val-share 1", "--val-share is 1; it must be 0, or between 0 and 1"),
        (False, "--test-share nan", "--test-share is nan; it must be 0, or between 0 and 1"),
        (False, "--val-share 0.6 --test-share 0.6", "test 0.6, val 0.6: each must be above 0"),
        (False, "--split 0.8 --test-share 0.1", "--split is for two splits"),
        (False, "--val-share 0", "the splits of the set are train; there must be one"),
        (True, "--val-share 0.2", "--val-share does not count: the set has val for val"),
    ],
)
def test_shares_that_cannot_be(run, table, capsys, own, options, message):
    if own:
        _with_splits(table, train=14, val=6)
    assert run("--images", "data", "--dry-run", *options.split()) == 2
    assert message in capsys.readouterr().err


def test_the_photos_to_predict_are_in_a_folder_that_there_is(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split, first in (("train", 0), ("test", 14)):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        rows = [f"image,{','.join(COLOURS)}"]
        for i in range(first, first + 14):
            image, cells, _ = _scene(i)
            (folder / f"{i}.jpg").write_bytes(image)
            rows.append(f"{i}.jpg,{','.join(cells.values())}")
        (folder / "_classes.csv").write_text("\n".join(rows))
    assert run("--images", "data", "--name", "ours") == 0
    said = capsys.readouterr().out
    assert "val (val): 2 images" in said and "--images data/test --out" in said


def test_given_again(run, table, capsys):
    arguments = ("--images", "data", "--name", "ours")
    assert run(*arguments) == 0
    recipe = Path("own/ours/ours.py").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in Path("prepared/ours").iterdir()}
    assert run(*arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("prepared/ours").iterdir()} == before
    assert Path("own/ours/ours.py").read_bytes() == recipe
    capsys.readouterr()

    def refused(*more):
        assert run(*arguments, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert Path("own/ours/ours.py").read_bytes() == recipe
        return line

    said = "prepared with train_share=0.8, and now it is with train_share=0.5"
    assert said in refused("--split", "0.5")
    assert "was prepared with split_seed=0, and now it is with split_seed=3" in refused(
        "--seed", "3"
    )
    labels = (table / "labels.csv").read_text()
    for changed in (
        labels.replace(",1\n", ",0\n", 1),
        labels.replace("red", "crimson"),
        labels.rpartition("\n19.jpg")[0],
    ):
        assert changed != labels
        (table / "labels.csv").write_text(changed)
        assert run(*arguments) == 0
        assert "ours is prepared again: labels.csv changed" in capsys.readouterr().out


def test_commands_are_those_of_the_program_that_was_called(run, table, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mlic prepare"])
    assert run("--images", "data", "--name", "ours") == 0
    assert printed_commands(capsys.readouterr().out) == [
        "mlic train --config own/ours/ours.py --workdir runs/ours",
        "mlic evaluate --workdir runs/ours",
        "mlic calibrate --workdir runs/ours --config.calibration.allow_test=True",
        "mlic predict --checkpoint runs/ours --images data/photos --out runs/ours/predictions",
    ]
    recipe, card = (Path("own/ours", name).read_text() for name in ("ours.py", "data_card.html"))
    assert "mlic train --config" in recipe and "python -m" not in recipe + card


def test_a_recipe_that_was_edited_stays(run, table, capsys):
    arguments = ("--images", "data", "--name", "ours")
    assert run(*arguments) == 0
    recipe = Path("own/ours/ours.py")
    edited = recipe.read_text().replace("config.epochs = ", "config.epochs = 1 + ")
    recipe.write_text(edited)
    for _ in range(2):
        capsys.readouterr()
        assert run(*arguments) == 0
        said = capsys.readouterr().out
        assert "own/ours/ours.py has been changed and stays as it is" in said
        assert "recipe: own/ours/ours_new.py\n" in said
        assert "--config own/ours/ours_new.py" in said
        assert recipe.read_text() == edited
    aside = Path("own/ours/ours_new.py")
    aside.write_text(edited + "# mine\n")
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert f"{recipe} has been changed" in said and f"{aside} has been changed" in said
    assert "--config own/ours/ours_new2.py" in said
    assert (recipe.read_text(), aside.read_text()) == (edited, edited + "# mine\n")
    recipe.unlink()
    aside.unlink()
    assert run(*arguments) == 0 and "has been changed" not in capsys.readouterr().out


def test_without_any_label(run, table, capsys):
    (table / "labels.csv").write_text("image,labels\n0.jpg,\n1.jpg,\n")
    assert run("--images", "data", "--dry-run") == 1
    assert "no photo has a label (read as csv" in capsys.readouterr().err


def test_splits_that_are_not_used_are_told(run, tmp_path, monkeypatch, capsys):
    folder = write_csv_set(tmp_path / "data", 8)
    lines = (folder / "labels.csv").read_text().splitlines()
    names = ["split", *["train", "val", "valid", "holdout"] * 2]
    table = "\n".join(f"{line},{name}" for line, name in zip(lines, names, strict=True))
    (folder / "labels.csv").write_text(table)
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--test-share", "0.5")):
        assert run("--images", "data", "--dry-run", *more) == 0
        assert "splits that are not used: holdout, valid" in capsys.readouterr().out


def test_dry_run(run, table, capsys):
    before = sorted(Path().rglob("*"))
    assert run("--images", "data", "--dry-run") == 0
    assert sorted(Path().rglob("*")) == before
    said = capsys.readouterr().out
    assert "format csv, told from labels.csv" in said
    assert f"photos: {table}/photos" in said and f"annotations: {table}/labels.csv" in said
    assert "splits: none of its own, it is divided" in said
    assert "train (train): 16 photos" in said and "val (val, test): 4 photos" in said
    rows = [line.split(",") for line in (table / "labels.csv").read_text().splitlines()[1:]]
    for i, colour in enumerate(COLOURS, 1):
        assert f"  {colour}: {sum(row[i] == '1' for row in rows)}" in said
    for row in rows[:2]:
        names = [c for c, cell in zip(COLOURS, row[1:], strict=True) if cell == "1"]
        assert f"photos/{row[0]}: {', '.join(names)}" in said
    assert "If any of this is wrong: --format, --images, --annotations, --image-column" in said
    (table / "photos" / "3.jpg").unlink()
    assert run("--images", "data", "--dry-run", "--name", "ours") == 0
    assert f"1 photos are not there: {table}/photos/3.jpg" in capsys.readouterr().out
    assert not Path("own").exists() and not Path("prepared").exists()


def test_what_was_decided_is_on_the_card(run, table, capsys):
    text = (table / "labels.csv").read_text().replace("image,", "image,Blue ,", 1)
    text = "\n".join(
        line if i == 0 else line.replace(",", ",-1,", 1) for i, line in enumerate(text.splitlines())
    )
    (table / "labels.csv").write_text(text)
    assert run("--images", "data", "--name", "ours") == 0
    said = capsys.readouterr().out
    told = "20 cells are -1: unknown, since others are 0"
    assert told in said
    assert "problem: the classes Blue, blue differ in case and blanks alone; --merge-class" in said
    assert told in json.loads(Path("own/ours/data_card.json").read_text())["decided"]
    page = Path("own/ours/data_card.html").read_text()
    assert told in page and "val: " in page
    arguments = ("--images", "data", "--name", "one", "--merge-classes")
    assert run(*arguments) == 0
    assert "one class, named blue as in the most photos: Blue, blue" in capsys.readouterr().out
    splits = sources.open_splits(
        DataOptions.of(read_module(Path("own/one/one.py")).get_config().data)
    )
    assert splits["train"].class_names == ("blue", "green", "red")


def test_a_guess_that_fails_says_what_decides(run, table, capsys):
    (table / "labels.csv").write_text("photos/1.jpg,1,0\nphotos/2.jpg,0,1\n")
    assert run("--images", "data", "--dry-run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the table has no header" in line and "(taken for csv; --format says another)" in line
    (table / "labels.csv").unlink()
    (table / "a.json").write_text('{"images": [{}], "annotations": [], "categories": []}')
    assert run("--images", "data", "--dry-run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "lacks the field 'id' (read as coco, told from a.json; see --format)" in line
    assert run("--images", "data", "--dry-run", "--label-column", "x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--label-column does not count for the format coco, told from a.json" in line


def test_unreadable_images(run, table, capsys):
    (table / "photos" / "7.jpg").write_bytes(b"no image")
    arguments = ("--images", "data", "--name", "ours")
    assert run(*arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ours: 1 unreadable images: ") and "7.jpg" in line
    assert not Path("own").exists() and not Path("prepared/ours").exists()
    for _ in range(2):  # the second time the set is there
        assert run(*arguments, "--on-corrupt", "skip") == 0
        assert "1 image is unreadable and left out" in capsys.readouterr().out
    assert "7.jpg" in Path("own/ours/data_card.html").read_text()


def test_images_without_annotations(run, table, capsys):
    text = (table / "labels.csv").read_text()
    (table / "labels.csv").write_text("\n".join(text.splitlines()[:-3]))
    assert run("--images", "data", "--name", "ours") == 0
    assert "3 images are there without annotations" in capsys.readouterr().out


def test_paths_that_need_quoting(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = write_csv_set(tmp_path / 'it\'s """mine""" \\N ü', 10)
    assert run("--images", folder, "--name", "ours", "--output", "my recipes") == 0
    recipe = read_module(tmp_path / "my recipes" / "ours.py")
    assert recipe.get_config().data.root == str(folder)
    commands = printed_commands(capsys.readouterr().out)
    assert all(command in recipe.__doc__ for command in commands)
    assert shlex.split(commands[0])[4] == "my recipes/ours.py"
    assert f"{folder.name}/photos" in shlex.split(commands[3])


# --- word vectors and models


def test_word_vectors_of_a_file(run, table, capsys):
    Path("glove.txt").write_text(GLOVE)
    assert run("--images", "data", "--name", "ours", "--word-vectors", "glove.txt") == 0
    assert "0 for red, of which no word is known" in capsys.readouterr().out
    config = read_module(Path("own/ours/ours.py")).get_config()
    vectors = word_vectors.load(config.data.word_vectors)
    assert vectors.class_names == COLOURS
    np.testing.assert_array_equal(vectors.vectors, [[1, 0, 0], [0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("names", [("blue",), COLOURS], ids=["one class", "three classes"])
@pytest.mark.parametrize("kind", ["mcar", "msrn"])
def test_the_recipe_fits_its_models(run, table, names, kind):
    rows = [line.split(",") for line in (table / "labels.csv").read_text().splitlines()]
    text = "\n".join(",".join(row[: 1 + len(names)]) for row in rows)
    (table / "labels.csv").write_text(text)
    assert run("--images", "data", "--name", "ours", "--word-vectors", "none") == 0
    config = read_module(Path("own/ours/ours.py")).get_config()
    config.model.name = kind
    options = TrainOptions.of(config)
    split = sources.open_splits(options.data)["train"]
    constants = start.label_constants(options, split)
    model = create_model(config.model, len(names), **label_inputs.arguments_of(constants))
    create_eval_model(options, len(names), constants)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    create_optimizer(options.optim, variables["params"], lambda step: 0.1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """weights(metadata) -> a checkpoint of one number."""

    def make(**metadata):
        folder = tmp_path_factory.mktemp("weights") / "backbone"
        variables = {"params": {"features": {"x": np.zeros(1, np.float32)}}, "batch_stats": {}}
        save_weights(folder, variables, metadata)
        return folder

    return make


def test_from_weights(run, table, weights):
    folder = weights(arch="mobilenet_v2", preprocessing={"mean": [0.5] * 3, "std": [0.25] * 3})
    assert run("--images", "data", "--name", "ours", "--init-from", folder) == 0
    ours = read_module(Path("own/ours/ours.py")).get_config()
    assert ours.init_from == str(folder)
    assert (ours.augment.mean, ours.augment.std) == ((0.5,) * 3, (0.25,) * 3)
    usual = read_module(ROOT / "configs" / "mcar_custom.py").get_config("mobilenet_v2,256")
    assert ours.optim == usual.optim and ours.freeze_statistics == usual.freeze_statistics
    assert (ours.epochs, ours.eval.every) == (usual.epochs, usual.eval.every)
    assert ours.data.train_crop == usual.data.train_crop and ours.data.image_size == 256
    for option in ("backbone", "width", "pooling", "top_n", "threshold"):
        assert ours.model[option] == usual.model[option]


def test_how_photos_were_prepared_is_taken_over(run, table, weights):
    """What the weights do not say is as usual."""
    told = {"mean": [0.4] * 3, "interpolation": "bicubic", "center_crop": 0.875}
    folder = weights(arch="mobilenet_v2", preprocessing=told)
    assert run("--images", "data", "--name", "ours", "--init-from", folder) == 0
    ours = read_module(Path("own/ours/ours.py")).get_config()
    assert (ours.data.interpolation, ours.data.center_crop) == ("bicubic", 0.875)
    assert (ours.augment.mean, ours.augment.std) == ((0.4,) * 3, (0.229, 0.224, 0.225))
    assert run("--images", "data", "--name", "old", "--init-from", weights(arch="resnet50")) == 0
    old = read_module(Path("own/old/old.py")).get_config()
    assert (old.data.interpolation, old.data.center_crop) == ("bilinear", 0.0)


def test_three_frequent_classes_are_learnt_steadily(run, table, config, fresh_run):
    """Classes that nearly every photo has, at the recipe's own rate; at that of 80 it diverges."""
    # Its features x are made as long as those of MobileNetV2 from ImageNet, |x|^2 = 600 or so: with
    # the statistics and biases that it is born with, they grow with the first kernel.
    config.model.name = "pooled"
    backbone, metadata = fresh_run(config)
    stem = backbone["params"]["features"]["stem"]
    stem["kernel"] = 4 * stem["kernel"]
    save_weights(Path("weights"), backbone, metadata)
    rows = [f"{i}.jpg,{int(i > 0)},{int(i != 1)},{int(i % 3 > 0)}" for i in range(20)]
    (table / "labels.csv").write_text("\n".join(["image,red cells,white cells,platelets", *rows]))
    assert run("--images", "data", "--name", "cells", "--init-from", "weights") == 0

    recipe = read_module(Path("own/cells/cells.py")).get_config("64")
    recipe.model.name = "pooled"  # which compiles sooner
    recipe.epochs = recipe.eval.every = 20
    recipe.batch_size, recipe.log_every = 8, 1
    train(recipe, Path("run"))
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40
    assert np.convolve(losses, np.full(10, 0.1), "valid").max() < 2 * losses[0]


def test_many_images_tune_the_weights(table, weights, monkeypatch):
    monkeypatch.setattr(settings, "FINE_TUNED_FROM", 16)
    folder = weights(config={"model": {"backbone": "resnet18", "width": 0.5}})
    arguments = ["--images", "data", "--name", "ours", "--init-from", str(folder)]
    assert own_data.main([*arguments, "--epochs", "2", "--image-size", "64"]) == 0
    ours = read_module(Path("own/ours/ours.py")).get_config()
    assert (ours.model.backbone, ours.model.width) == ("resnet18", 0.5)
    rate = ours.optim.learning_rate * rate_scale(OptimOptions.of(ours.optim), 16, num_classes=3)
    assert rate * ours.optim.multipliers.features == pytest.approx(0.003, rel=1e-4)
    assert not ours.freeze_statistics
    assert (ours.epochs, ours.eval.every, ours.data.image_size) == (2, 1, 64)


# --- what is refused, in one line and before anything is written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--images data", "required: --name"),
        ("--name ours", "required: --images"),
        ("--images nowhere --name ours", "--images nowhere: there is no such"),
        ("--images data --name ours --annotations x.csv", "--annotations x.csv: there is no such"),
        ("--images data --name ours --format xml", "xml"),
        ("--images data --name ours --format coco", "--format coco needs annotations in COCO's"),
        ("--images data/photos --name ours", "has nothing of any format that is known"),
        ("--images data --name Ours", "'Ours' cannot name a prepared set"),
        ("--images data --name ours --split 80", "--split is 80; it must be between 0 and 1"),
        ("--images data --name ours --image-size 100", "data.image_size is 100"),
        ("--images data --name ours --image-size 0", "data.image_size is 0"),
        ("--images data --name ours --epochs 0", "epochs is 0; it must be positive"),
        ("--images data --name ours --keep-labels 0", "data.keep_labels is 0"),
        ("--images data --name ours --init-from nowhere", "no checkpoint at "),
        ("--images data --name ours --word-vectors nowhere", "nowhere cannot be read"),
        ("--images data --name ours --word-vectors few.txt", "no vector for any of the 3 classes"),
        ("--images data --name ours --prepared-dir few.txt", "few.txt"),
    ],
)
def test_wrong_requests(run, table, arguments, message, capsys):
    Path("few.txt").write_text("other 1 2 3\n")
    before = sorted(Path().rglob("*"))
    assert run(*arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(Path().rglob("*")) == before


def test_an_output_that_cannot_be_written(run, table, capsys):
    Path("file").write_text("")
    assert run("--images", "data", "--name", "ours", "--output", "file/x") == 2
    assert "cannot write" in capsys.readouterr().err.splitlines()[-1]


def test_as_a_program(tmp_path):
    answer = subprocess.run(
        [sys.executable, SCRIPT, "--images", "nowhere", "--name", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr == "error: --images nowhere: there is no such file or folder\n"


# --- from raw files to labels, with the printed commands only


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "found"), [(write_voc_set, "voc"), (write_csv_set, "csv")], ids=["voc", "csv"]
)
def test_the_printed_commands_do_it_all(write, found, tmp_path):
    write(tmp_path / "data", 80)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
    }

    def shell(command):
        answer = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout

    said = shell(f"python {SCRIPT} --images data --name ours --image-size 64 --epochs 4")
    assert f"format {found}, told from" in said and "3 classes: blue, green, red" in said
    commands = printed_commands(said)
    assert len(commands) == 4
    trained, evaluated, calibrated, _ = map(shell, commands)

    run = tmp_path / "runs" / "ours"
    metrics = json.loads((run / "metrics_val.json").read_text())
    assert metrics["unknown_in_ap"] == "ignore" and metrics["num_classes"] == 3
    assert metrics["mAP"] > metrics["chance"] + 10  # it learned something
    assert f"final mAP {metrics['mAP']:.1f}" in trained and f"{metrics['mAP']:.1f}" in evaluated
    scores = Scores.load(run / "scores_val.npz")
    assert (scores.labels == 0).any() and scores.labels.shape == (16, 3)
    assert "learned on the test split" in calibrated
    assert (run / "calibration_val.json").is_file()
    with (run / "predictions" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80 and not any(row["error"] for row in rows)
    page = (run / "predictions" / "index.html").read_text()
    assert "learned on the test split" in page  # it uses the operating point
    assert {label for row in rows for label in row["labels"].split(";")} <= {*COLOURS, ""}

    moved = tmp_path / "moved"  # all of it, which is looked at from anywhere
    moved.mkdir()
    for name in ("data", "prepared", "own", "runs"):
        (tmp_path / name).rename(moved / name)
    again = shell("python -m mlic_jax.main --mode evaluate --workdir moved/runs/ours")
    assert f"final mAP {metrics['mAP']:.1f}" in again and "prepared again" not in again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]
