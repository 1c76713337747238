"""Resuming: what may differ from the run that is there, and what not."""

import json

import pytest

from mlic_jax.checkpoint_config import changed_options
from mlic_jax.errors import UsageError
from mlic_jax.train.resume import FREE, check_resumable


def metadata_of(config, step=None):
    stream = {"set": "s", "split": "train", "examples": 20, "batch_size": 8, "seed": config.seed}
    metadata = {"config": json.loads(config.to_json()), "class_names": ["a"], "stream": stream}
    return metadata if step is None else metadata | {"step": step}


@pytest.fixture
def compare(make_config, tmp_path):
    """What `check_resumable` says of a run of 6 steps at step 6 after some options changed."""

    def run(changes, last_step=9, allow_changes=False, before=()):
        configs = make_config(), make_config()
        for options, config in ((before, configs[0]), ((*before, *changes), configs[1])):
            for name, value in options:
                config.update_from_flattened_dict({name: value})
        saved, current = metadata_of(configs[0], 6), metadata_of(configs[1])
        return check_resumable(saved, current, tmp_path, last_step, allow_changes)

    return run


def test_the_same_configuration_changes_nothing(compare):
    assert compare([]) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.learning_rate", 0.1),
        ("optim.schedule", "cosine"),
        ("optim.milestones", (1, 2)),
        ("optim.multipliers.rest", 0.5),
        ("augment.jitter", 0.0),
        ("loss.label_policy", "ignore"),
        ("data.train_crop", "multi_scale"),
        ("data.keep_labels", 0.4),
        ("init_from", "elsewhere"),
        ("accumulation", 2),
        ("eval.protocol", "msrn"),
    ],
)
def test_options_that_change_what_has_been_are_refused_unless_allowed(compare, name, value):
    with pytest.raises(UsageError, match=rf"had {name} .* \(now .*--allow_changes") as error:
        compare([(name, value)])
    assert "\n" not in str(error.value)
    (changed,) = compare([(name, value)], allow_changes=True).items()
    assert changed[0] == name
    assert json.dumps(changed[1][1]) == json.dumps(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.name", "adamw"),
        ("optim.ema", 0.9),
        ("optim.clip_norm", 1.0),
        ("optim.layer_decay", 0.5),
        ("optim.decay_biases_and_norms", False),
        ("optim.multipliers.features", 0.0),
    ],
)
def test_another_optimiser_is_refused_whatever_is_allowed(compare, name, value):
    """Each has arrays that the other has not, so that nothing could be restored."""
    with pytest.raises(UsageError, match=rf"had {name} .* \(now .* beside its weights is of no"):
        compare([(name, value)], allow_changes=True)


def test_amounts_of_an_optimiser_may_change_where_that_is_allowed(compare):
    changes = [("optim.ema", 0.9), ("optim.layer_decay", 0.5), ("optim.clip_norm", 1.0)]
    other = [("optim.ema", 0.99), ("optim.layer_decay", 0.7), ("optim.clip_norm", 2.0)]
    assert len(compare(other, allow_changes=True, before=changes)) == 3


def test_options_of_how_a_run_is_done_are_only_told(compare):
    changes = [("log_every", 7), ("data.workers", 1), ("data.cache", "pixels")]
    assert compare([*changes, ("early_stopping", 3), ("recipe", "released")]) == {
        "recipe": ("", "released"),
        "early_stopping": (0, 3),
        "log_every": (1, 7),
        "data.workers": (0, 1),
        "data.cache": ("none", "pixels"),
    }


def test_more_epochs_are_free_where_the_rates_before_stay(compare):
    assert compare([("epochs", 4)], last_step=12) == {"epochs": (2, 4)}
    with pytest.raises(UsageError, match=r"had epochs 2 \(now 4\)"):
        compare([("epochs", 4)], last_step=12, before=[("optim.schedule", "cosine")])


def test_a_run_that_is_already_further_is_refused(compare):
    with pytest.raises(UsageError, match=r"is at step 6, and with epochs 1 it ends at 3"):
        compare([("epochs", 1)], last_step=3)


def test_what_an_earlier_version_did_not_note_is_as_it_was(make_config, tmp_path):
    saved, current = metadata_of(make_config(), 6), metadata_of(make_config())
    current["stream"]["digest"] = "ab"
    assert check_resumable(saved, current, tmp_path, 9) == {}
    saved["stream"]["digest"] = "cd"
    with pytest.raises(UsageError, match="digest 'cd', now it is 'ab'"):
        check_resumable(saved, current, tmp_path, 9)


@pytest.mark.parametrize("name", ["set", "split", "examples", "batch_size", "seed"])
def test_other_batches_are_refused_whatever_is_allowed(make_config, tmp_path, name):
    saved, current = metadata_of(make_config(), 6), metadata_of(make_config())
    current["stream"][name] = 7
    with pytest.raises(UsageError, match=f"read batches with {name} .*, now it is 7"):
        check_resumable(saved, current, tmp_path, 6, allow_changes=True)


def test_an_option_that_was_none_had_its_default(make_config):
    current = json.loads(make_config().to_json())
    saved = json.loads(json.dumps(current))
    del saved["keep_checkpoints"], saved["optim"]["clip_norm"]
    assert changed_options(saved, current) == {}
    current["optim"]["clip_norm"] = 1.0
    assert changed_options(saved, current) == {"optim.clip_norm": (0.0, 1.0)}


def test_a_group_that_is_gone_is_a_change(make_config):
    saved = json.loads(make_config().to_json())
    current = json.loads(json.dumps(saved))
    saved["optim"]["multipliers"] = {"features": 0.1, "branch2": 0.1, "rest": 1.0}
    assert changed_options(saved, current) == {"optim.multipliers.branch2": (0.1, None)}
    del saved["optim"]["multipliers"]["rest"]  # which is a default, but was not there
    assert changed_options(saved, current)["optim.multipliers.rest"] == (None, 1.0)


def test_a_complete_run_is_not_changed_any_more(make_config, tmp_path):
    saved, current = metadata_of(make_config(), 6), metadata_of(make_config())
    current["config"]["eval"]["flip"] = True
    with pytest.raises(UsageError, match=r"is complete: .* eval\.flip False \(now True\)"):
        check_resumable(saved, current, tmp_path, 6, allow_changes=True)


@pytest.mark.parametrize("back", [False, True])
def test_labels_that_were_corrected_are_not_forgotten_in_resuming(compare, back):
    permanent = [("loss.name", "large_loss"), ("loss.large", "correct_permanently")]
    assert compare([], before=permanent) == {}
    with pytest.raises(UsageError, match=r"had .*loss\.large.* what it keeps beside"):
        if back:
            compare([("loss.large", "reject")], before=permanent, allow_changes=True)
        else:
            compare(permanent, allow_changes=True)
    assert "loss.large" in compare([permanent[1]], allow_changes=True)  # of another loss


def test_all_that_is_free_is_an_option(make_config):
    config = make_config()
    for name in FREE:
        value = config
        for part in name.split("."):
            value = value[part]  # raises where there is none
