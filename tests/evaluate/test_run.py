"""Scores of a split: each image once, the same from the file as from the model, kept whole."""

import dataclasses
import json
from functools import cache

import jax
import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import co_occurrence, label_inputs, sources
from mlic_jax.data.corrections import Answer, append, now
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records.stamps import digest_of_file
from mlic_jax.errors import Failure, UsageError
from mlic_jax.evaluate import run
from mlic_jax.evaluate.run import MetricOptions
from mlic_jax.evaluate.score_file import main
from mlic_jax.metrics import significance
from mlic_jax.metrics.average_precision import average_precision
from mlic_jax.metrics.classification import evaluate_scores
from mlic_jax.models import create_model
from mlic_jax.reports import text
from mlic_jax.runtime import devices
from mlic_jax.runtime.checkpoint import save_weights
from mlic_jax.scores import scoring
from mlic_jax.scores.files import Scores
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.resume import run_metadata
from mlic_jax.train.start import initial_variables


@pytest.fixture(scope="module")
def scored(make_config):
    """A function that scores the test split, once a batch size of a device, with fresh weights."""

    @cache
    def score(batch_size):
        config = make_config()
        config.eval.batch_size = batch_size
        options = TrainOptions.of(config)
        split = sources.open_splits(options.data)["test"]
        model = create_model(config.model, len(split.class_names))
        mesh = devices.create_mesh()
        variables = jax.device_put(initial_variables(model, options), devices.replicated(mesh))
        eval_step = scoring.make_eval_step(model, options, mesh)
        return scoring.Evaluator(eval_step, split, options, mesh)(variables), split

    return score


def test_every_image_is_scored_once_whatever_the_batches(scored, config):
    whole, split = scored(2)
    parts, _ = scored(1)
    assert len(whole.logits) == len(split) == 11
    np.testing.assert_allclose(whole.logits, parts.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(whole.labels, split.labels())
    assert list(whole.image_ids) == [split.image_id(i) for i in range(11)]
    assert whole.boxes.shape == (11, config.model.top_n, 4)
    assert (whole.set_name, whole.split, whole.image_size) == ("tiny_scenes", "test", 64)


def test_an_image_without_a_score_is_missed(scored, config, monkeypatch):
    """Of a split that lost its last batch on the way no score file is made."""
    score, batches = scored, scoring.pipeline.batches
    _, split = score(2)
    monkeypatch.setattr(scoring.pipeline, "batches", lambda *a, **k: list(batches(*a, **k))[:-1])
    monkeypatch.setattr(scoring.profiling, "profiled", lambda batches, *_: iter(batches))

    def eval_step(_, batch):
        return {"logits": batch["labels"], "labels": batch["labels"], "index": batch["index"]}

    with pytest.raises(Failure, match="3 images of tiny_scenes test were not scored once"):
        scoring.Evaluator(eval_step, split, ScoreOptions.of(config), devices.create_mesh())({})


def test_evaluation_keeps_pixels_as_the_configuration_says(scored, config, capsys):
    _, split = scored(2)
    config.data.cache, config.data.cache_gib = "pixels", 1e-9

    def eval_step(_, batch):
        logits = batch["labels"].astype(np.float32)
        return {"logits": logits, "labels": batch["labels"], "index": batch["index"]}

    scoring.Evaluator(eval_step, split, ScoreOptions.of(config), devices.create_mesh())({})
    assert "tiny_scenes test, 64 px) are not kept" in (line := capsys.readouterr().out)
    assert line.endswith("and data.cache_gib is 1e-09\n")


def test_evaluation_looks_as_its_own_options_say(config):
    as_trained = scoring.create_eval_model(ScoreOptions.of(config), 12, {})
    assert (as_trained.top_n, as_trained.local_size, as_trained.local_bound) == (2, 0, 0)
    config.eval.update(top_n=5, local_size=32, local_bound=0.2)
    model = scoring.create_eval_model(ScoreOptions.of(config), 12, {})
    assert (model.top_n, model.local_size, model.local_bound) == (5, 32, 0.2)
    assert (config.model.top_n, config.model.local_size) == (2, 0)


@pytest.mark.parametrize(
    ("protocol", "policy", "treated"),
    [("mcar", "", 0), ("asl", "", -1), ("mcar", "as_positive", 1), ("asl", "ignore", 0)],
)
def test_unknown_labels_count_as_the_configuration_says(
    protocol, policy, treated, score_file, config
):
    """In both streams alike."""
    rng = np.random.default_rng(2)
    path = score_file("a.npz", global_logits=rng.normal(size=(80, 4)).astype(np.float32))
    scores = Scores.load(path)
    config.eval.protocol, config.eval.label_policy = protocol, policy
    values = run.compute_metrics(scores, MetricOptions.of(config.eval))
    labels = np.where(scores.labels == 0, treated, scores.labels)
    for name, logits in (("mAP", scores.logits), ("global_mAP", scores.global_logits)):
        expected = average_precision(logits, labels, values["ap_kind"])
        assert values[name] == pytest.approx(np.nanmean(expected), rel=1e-12)


def test_frequent_classes_are_so_in_training_and_test(config):
    splits = sources.open_splits(DataOptions.of(config.data))
    train, test = ((splits[name].labels() > 0).sum(axis=0) for name in ("train", "test"))
    frequent = run.frequent_classes(splits["train"], splits["test"], 3)
    expected = [a >= 3 and b >= 3 for a, b in zip(train, test, strict=True)]
    np.testing.assert_array_equal(frequent, expected)
    assert 0 < sum(expected) < min((train >= 3).sum(), (test >= 3).sum())


def test_metrics_again_from_the_score_file_alone(scored, config, tmp_path, capsys):
    scores, _ = scored(2)
    path = tmp_path / "scores.npz"
    scores.save(path)
    values = run.compute_metrics(scores, MetricOptions.of(config.eval))
    assert main([str(path), "--json", str(tmp_path / "metrics.json")]) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again == {name: values[name] for name in again}
    assert f"{values['mAP']:.1f}" in capsys.readouterr().out


@pytest.fixture
def score_file(tmp_path):
    """A function that writes a score file of 80 images, with more or less noise."""

    def write(name, noise=0.0, **changes):
        rng = np.random.default_rng(0)
        labels = rng.choice(np.array([-1, 0, 1], np.int8), p=[0.7, 0.1, 0.2], size=(80, 4))
        labels[:, 2] = -1
        logits = rng.normal(size=labels.shape) + 2 * (labels > 0) - 1
        logits += noise * np.random.default_rng(1).normal(size=labels.shape)
        fields = {
            "logits": logits.astype(np.float32),
            "labels": labels,
            "image_ids": np.array([f"{i:03}" for i in range(80)]),
            "class_names": np.array(["cat", "traffic light", "yak", "tv"]),
        }
        path = tmp_path / name
        Scores(**fields | changes, set_name="toy", split="test", image_size=64).save(path)
        return path

    return write


def evaluate_file(path, protocol, policy=None):
    scores = Scores.load(path)
    return evaluate_scores(
        scores.logits,
        scores.labels,
        protocol,
        class_names=list(scores.class_names),
        label_policy=policy,
    )


@pytest.mark.parametrize(
    ("protocol", "policy"), [("asl", None), ("voc2007", "as_positive"), ("msrn", "ignore")]
)
def test_protocol_and_label_policy_of_the_command_line(
    protocol, policy, score_file, tmp_path, capsys
):
    path, written = score_file("a.npz"), tmp_path / "metrics.json"
    options = ["--protocol", protocol, "--json", str(written)]
    options += ["--label-policy", policy] if policy else []
    assert main([str(path), *options]) == 0
    values = evaluate_file(path, protocol, policy)
    assert json.loads(written.read_text()) == values
    printed = capsys.readouterr().out
    assert f"{values['class_f1']} {values[values['class_f1']]:.1f}\n" in printed
    assert f"at probability >= {values['threshold']:g}:  OP {values['OP']:.1f}" in printed


def test_summary_tells_swept_from_fixed(score_file):
    values = evaluate_file(score_file("a.npz"), "msrn")
    values |= {"OP_3": 11.1, "OR_3": 22.2, "OF1_3": 33.3}  # of few classes they are as the others
    lines = text.summary(values, "toy test").splitlines()
    (fixed,) = (line for line in lines if "all labels at probability >= 0.5" in line)
    (swept,) = (line for line in lines if "swept on these scores" in line)
    (ranked,) = (line for line in lines if "ranking:" in line)
    (top,) = (line for line in lines if "top-3 labels at probability >= 0.5" in line)
    assert "OP 11.1  OR 22.2  OF1 33.3" in top
    assert f"OF1 {values['OF1']:.1f}" in fixed and "swept" not in fixed
    assert f"at logit >= {values['swept']['threshold']:g}," in swept
    assert f"OF1 {values['swept']['OF1']:.1f}" in swept
    assert values["swept"]["OF1"] > values["OF1"] + 0.1
    assert f"coverage error {values['coverage_error']:.2f} labels" in ranked
    assert f"label ranking AP {values['label_ranking_average_precision']:.1f}" in ranked
    assert f"ranking loss {values['ranking_loss']:.2f}" in ranked
    plain = text.summary(evaluate_file(score_file("a.npz"), "mlgcn"), "toy test")
    assert "swept" not in plain and "ranking" not in plain


def test_equal_scores_are_said_and_rank_as_the_command_line_says(score_file, tmp_path, capsys):
    path, written = score_file("a.npz"), tmp_path / "metrics.json"
    scores = Scores.load(path)
    dataclasses.replace(scores, logits=np.zeros_like(scores.logits)).save(path)
    assert main([str(path), "--ties", "average", "--json", str(written)]) == 0
    values = json.loads(written.read_text())
    assert values["ties"] == "average" and values["mAP"] == pytest.approx(values["chance"])
    worst, best = values["tied"]["mAP"]
    said = f"  equal scores: by the order of such images mAP is {worst:.1f} to {best:.1f}; "
    assert said in capsys.readouterr().out


def test_table_of_classes(score_file, tmp_path, capsys):
    path, written = score_file("a.npz"), tmp_path / "metrics.json"
    assert main([str(path), "--per-class"]) == 0
    options = ["--per-class", "--bootstrap", "40", "--json", str(written)]
    plain = capsys.readouterr().out.splitlines()[-5:]
    assert main([str(path), *options]) == 0
    with_intervals = capsys.readouterr().out.splitlines()[-5:]

    values = json.loads(written.read_text())
    assert plain[0].split() == ["class", "positives", "AP", "P", "R", "F1"]
    heading = " ".join(with_intervals[0].split())
    assert heading == "class positives AP 95% interval P R F1"
    for c, name in enumerate(["cat", "traffic light", "yak", "tv"]):
        figures = [values[key][c] for key in ("AP", "P", "R", "F1")]
        figures = ["-" if figure is None else f"{figure:.1f}" for figure in figures]
        bounds = [f"{bound:.1f}" for bound in values["bootstrap"]["AP"][c] or ()] or ["-", "-"]
        count = str(values["positives"][c])
        assert plain[c + 1].split() == [*name.split(), count, *figures]
        expected = [*name.split(), count, figures[0], *bounds, *figures[1:]]
        assert with_intervals[c + 1].split() == expected
    assert values["AP"][2] is None and values["bootstrap"]["AP"][2] is None
    for table in (plain, with_intervals):
        assert len({len(line) for line in table}) == 1  # columns stand below their headings


def test_intervals_and_paired_test_of_the_command_line(score_file, tmp_path, capsys):
    path, noisy = score_file("a.npz"), score_file("b.npz", noise=2.0)
    options = ["--against", str(noisy), "--bootstrap", "50", "--json", str(tmp_path / "m.json")]
    assert main([str(path), "--protocol", "q2l", *options]) == 0
    values = json.loads((tmp_path / "m.json").read_text())
    ours, other = Scores.load(path), Scores.load(noisy)
    labels = np.where(ours.labels == 0, -1, ours.labels)  # as q2l says
    assert values["bootstrap"] == significance.bootstrap_intervals(
        ours.logits, labels, "envelope", resamples=50
    )
    test = significance.compare(ours.logits, other.logits, labels, "envelope", resamples=50)
    assert values["against"] == test
    assert test["mAP"] == values["mAP"] and test["p_value"] < 0.1
    printed = capsys.readouterr().out
    low, high = values["bootstrap"]["mAP"]
    assert f"mAP {values['mAP']:.1f}, 95% interval {low:.1f} to {high:.1f}" in printed
    assert f"= {test['difference']:+.2f}, " in printed
    assert f"p = {test['p_value']:.2g} (paired bootstrap, 50 resamples)" in printed

    assert main([str(path), "--bootstrap", "0"]) == 2
    assert "it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": np.array(["cat", "yak", "traffic light", "tv"])}, "their class names"),
        ({"image_ids": np.array([f"{i:03}" for i in range(1, 81)])}, "their image ids"),
        ({"labels": np.ones((80, 4), np.int8)}, "their labels"),
    ],
)
def test_a_paired_test_needs_the_same_images(changes, message, score_file, capsys):
    path, other = score_file("a.npz"), score_file("b.npz", **changes)
    assert main([str(path), "--against", str(other)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert main([str(path), "--against", str(path.with_name("none.npz"))]) == 2


def test_the_global_stream_is_ranked_as_the_protocol_says(scored, config):
    scores, _ = scored(2)
    config = config.copy_and_resolve_references()
    config.eval.protocol = "voc2007"
    values = run.compute_metrics(scores, MetricOptions.of(config.eval))
    ap = average_precision(scores.global_logits, scores.labels, "voc11")
    assert values["global_mAP"] == np.nanmean(ap)


def test_score_files_that_are_none(tmp_path, capsys):
    assert main([str(tmp_path / "nothing.npz")]) == 2
    (tmp_path / "text.npz").write_text("no")
    assert main([str(tmp_path / "text.npz")]) == 1
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    with pytest.raises(Failure, match="not a score file"):
        Scores.load(tmp_path / "other.npz")
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_failed_save_leaves_the_earlier_file(scored, tmp_path, monkeypatch):
    scores, _ = scored(2)
    path = tmp_path / "scores.npz"
    scores.save(path)
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space"):
        scores.save(path)
    assert path.read_bytes() == before


def test_the_groups_of_msrn_are_those_of_its_images(config, tmp_path):
    config.model.update(name="msrn", head="per_label", pool_ratio=0.3)
    split = sources.open_splits(DataOptions.of(config.data))["test"]
    names = split.class_names
    counts, class_counts = co_occurrence.count(split.labels(), "as_positive")
    known = {
        "word_vectors": np.eye(len(names), dtype=np.float32),
        "counts": counts,
        "class_counts": class_counts,
    }
    model = create_model(
        config.model, len(names), **label_inputs.arguments_of({"label_inputs": known})
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 96, 96, 3)).astype(np.float32)
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), images))

    def draw(leaf):  # kernels that keep activations in range, and positive statistics
        if len(leaf.shape) == 1:
            return rng.uniform(0.5, 1, leaf.shape).astype(np.float32)
        return rng.standard_normal(leaf.shape, np.float32) / np.prod(leaf.shape[:-1]) ** 0.5

    weights = jax.tree.map(lambda leaf: draw(leaf).astype(np.float32), shapes)
    weights["params"]["label_linear"]["bias"][:] = 0  # what labels share would decide the group
    info = {"config": json.loads(config.to_json()), "class_names": list(names), "source": "here"}
    save_weights(tmp_path / "weights", weights | {"label_inputs": known}, info)

    values = run.evaluate_run(config, tmp_path / "run", tmp_path / "weights")
    assign = jax.jit(lambda *inputs: model.apply(*inputs)["group_assignment"])
    assignment = np.asarray(assign(weights, images))
    assert assignment.shape == (12, 3)
    shares = dict(zip(names, assignment.max(axis=1), strict=True))
    expected = [[], [], []]
    for name in sorted(names, key=shares.get, reverse=True):
        expected[assignment[names.index(name)].argmax()].append(name)
    assert sum(map(bool, expected)) > 1
    assert values["groups"] == expected
    saved = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert saved["groups"] == expected
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert all(f'<li class="label">{name} {shares[name]:.2f}</li>' in page for name in names)
    i, j = np.argwhere(counts >= 0.4 * np.maximum(class_counts, 1)[:, None])[0]
    assert f"<title>{names[i]} → {names[j]}: {counts[i, j] / class_counts[i]:.2f}</title>" in page


def metadata(model=None, names=("a", "b")):
    return {"config": {"model": model or {"width": 2.0}}, "class_names": list(names)}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (metadata({"width": 4.0}), "has model.width 4.0, the configuration 2.0"),
        (metadata(names=("a", "c")), "has 2 classes, the data 2, differing in b, c"),
        (metadata(names=("b", "a")), "in another order"),
        ({"arch": "resnet50"}, "holds a backbone alone"),
    ],
)
def test_a_checkpoint_of_something_else(saved, message, tmp_path):
    with pytest.raises(UsageError) as error:
        scoring.check_same_model(saved, metadata(), tmp_path)
    assert message in str(error.value)
    scoring.check_same_model(metadata(), metadata(), tmp_path)


def test_options_that_decide_no_array_may_differ(tmp_path):
    saved = metadata({"top_n": 4, "backbone": "resnet18"})
    current = metadata({"top_n": 2, "backbone": "resnet18"})
    scoring.check_same_model(saved, current, tmp_path)
    with pytest.raises(UsageError, match="backbone"):
        current["config"]["model"]["backbone"] = "resnet50"
        scoring.check_same_model(saved, current, tmp_path)


@pytest.mark.parametrize("option", ["name", "backbone", "width", "pool_ratio", "head"])
def test_options_that_decide_an_array_must_agree(option, config, tmp_path):
    saved = {"config": json.loads(config.to_json()), "class_names": ["a"]}
    current = json.loads(json.dumps(saved))
    scoring.check_same_model(saved, current, tmp_path)
    current["config"]["model"][option] = 7
    with pytest.raises(UsageError, match=rf"has model\.{option} .*, the configuration 7"):
        scoring.check_same_model(saved, current, tmp_path)


def test_labels_and_scores_agree_with_a_label_tree(config, tmp_path, fresh_run, capsys):
    config.model.name = "pooled"
    variables, info = fresh_run(config)
    names = info["class_names"]
    (tmp_path / "tree.txt").write_text("".join(f"{name} < {names[0]}\n" for name in names[1:]))
    config.data.label_tree = str(tmp_path / "tree.txt")
    info = run_metadata(config, sources.open_splits(TrainOptions.of(config).data)["val"], tmp_path)
    assert info["label_tree"] == [[name, names[0]] for name in names[1:]]
    save_weights(tmp_path / "weights", variables, info)

    values = run.evaluate_run(config, tmp_path / "plain", tmp_path / "weights")
    plain = Scores.load(tmp_path / "plain" / "scores_test.npz")
    found = values["label_tree"]
    shown = (plain.labels[:, 1:] > 0) & (plain.labels[:, :1] < 0)
    assert found["labels"] == shown.sum(axis=0).tolist() and shown.any()
    assert found["scores"] == np.sum(plain.logits[:, 1:] > plain.logits[:, :1], axis=0).tolist()
    said = f"{shown.sum()} labels and {sum(found['scores'])} scores are against it"
    assert f"label tree: of 121 (a rule and a photo) {said}" in capsys.readouterr().out
    assert said in (tmp_path / "plain" / "report" / "index.html").read_text()

    config.data.fill_parents = config.eval.consistent = True
    values = run.evaluate_run(config, tmp_path / "agree", tmp_path / "weights")
    agree = Scores.load(tmp_path / "agree" / "scores_test.npz")
    assert not any(values["label_tree"]["labels"] + values["label_tree"]["scores"])
    np.testing.assert_array_equal(agree.logits[:, 0], plain.logits.max(axis=1))
    np.testing.assert_array_equal(agree.logits[:, 1:], plain.logits[:, 1:])
    np.testing.assert_array_equal(agree.labels[:, 0] > 0, (plain.labels > 0).any(axis=1))


def test_metrics_note_the_corrections_that_they_were_computed_with(config, tmp_path, fresh_run):
    config.model.name = "pooled"
    variables, info = fresh_run(config)
    save_weights(tmp_path / "weights", variables, info)
    file, name = tmp_path / "corrections.csv", info["class_names"][0]
    config.data.corrections = str(file)
    noted = []
    for photo in (None, 0, 1):
        if photo is not None:
            image_id = sources.open_splits(DataOptions.of(config.data))["test"].image_id(photo)
            append(file, [Answer(image_id, "test", name, "unknown", "anna", now())])
        run.evaluate_run(config, tmp_path / "run", tmp_path / "weights")
        noted.append(
            json.loads((tmp_path / "run/metrics_test.json").read_text()).get("corrections")
        )
    assert noted[0] is None and [said["answers"] for said in noted[1:]] == [1, 2]
    assert noted[1]["digest"] != noted[2]["digest"] == digest_of_file(file)


def test_of_a_split_without_known_labels_only_the_scores_are_written(config, tmp_path, capsys):
    rows = ["image,dog,cat,split"]
    for i in range(9):
        Image.new("RGB", (40, 30), (20 * i, 90, 0)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png," + (f"{i % 2},{(i + 1) % 2},train" if i < 5 else "?,?,test"))
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    config.data.source, config.data.name, config.data.root = "csv", "unlabelled", str(tmp_path)
    config.data.annotations, config.data.image_dir = "labels.csv", ""
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.data.splits = {"train": "train", "val": "train", "test": "test"}
    config.model.name = "pooled"
    shapes = jax.eval_shape(
        create_model(config.model, 2).init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)
    )
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), dict(shapes))
    info = {"config": json.loads(config.to_json()), "class_names": ["dog", "cat"]}
    save_weights(tmp_path / "weights", weights, info)

    assert run.evaluate_run(config, tmp_path / "run", tmp_path / "weights") == {}
    written = tmp_path / "run" / "scores_test.npz"
    assert f"no label of unlabelled test is known: wrote {written} alone" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["scores_test.npz"]
    scores = Scores.load(written)
    assert scores.image_ids.tolist() == [f"{i}.png" for i in range(5, 9)]
    assert not scores.labels.any() and np.isfinite(scores.logits).all()
