"""Recipes by name and by file, what is said of a wrong one, and what every option means."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

import mlic_jax
from mlic_jax import recipes
from mlic_jax.config import default_config
from mlic_jax.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]

RECIPE = """from mlic_jax.config import default_config

def get_config():
    config = default_config()
    {line}
    return config
"""


def test_by_name_by_file_and_with_variants(tmp_path):
    config = mlic_jax.recipe("mcar_coco:resnet50,256")
    assert config == recipes.load(f"{ROOT}/configs/mcar_coco.py:resnet50,256")
    assert (config.data.name, config.model.backbone) == ("coco2014", "resnet50")
    assert config.is_locked
    own = tmp_path / "mine.py"
    own.write_text(RECIPE.format(line="config.epochs = 3"))
    assert recipes.load(str(own)).epochs == 3
    own.write_text(RECIPE.format(line="config.epochs = 4"))
    assert recipes.load(str(own)).epochs == 4


def test_what_is_known():
    known = recipes.known()
    assert set(known) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert known["mcar_scenes"].startswith("MCAR from random initialisation on generated scenes")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.epoch = 3", "line 5: the configuration has no option 'epoch'.*did you mean 'epo"),
        ("config.optim.lerning_rate = 1.0", "5: .* 'optim.lerning_rate'.* 'optim.learning_rate'?"),
        ("x = config.optim.lerning_rate", "5: .* 'optim.lerning_rate'.* 'optim.learning_rate'?"),
        ("config.epochs = 'many'", "line 5: TypeError: Could not override field 'epochs'"),
        ("config.epochs = = 3", "line 5: invalid syntax"),
        ("config.epochs = thirty", "line 5: NameError: name 'thirty' is not defined"),
        ("config = None", "get_config returns no ConfigDict but NoneType"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(line, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.format(line=line))
    with pytest.raises(UsageError, match=message) as error:
        recipes.load(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_what_is_no_recipe(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("")
    with pytest.raises(UsageError, match=r"it is a folder; its recipe is .*mine/mine\.py"):
        recipes.load(str(tmp_path / "mine"))
    with pytest.raises(UsageError, match=r"no such file.*did you mean 'mcar_voc2007'\?"):
        recipes.load("elsewhere/mcar_voc207.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match="has a function get_config, and this file has none"):
        recipes.load(f"{tmp_path}/empty.py")
    (tmp_path / "mine.py").write_text(RECIPE.format(line="pass"))
    with pytest.raises(UsageError, match=r"mine\.py: TypeError: get_config"):
        recipes.load(f"{tmp_path}/mine.py:resnet50")  # it takes no variant


def test_every_option_has_a_meaning_and_its_default():
    options = recipes.options()
    known = {
        f"{name}.{below}" if below else name
        for name, value in default_config().items()
        for below in (value if isinstance(value, ConfigDict) else [""])
    }
    assert options.keys() == known
    assert options["eval.every"] == (1, "epochs between validations")
    assert options["data.splits"].default == {"train": "train", "val": "val", "test": "test"}
    assert options["eval.ties"].meaning.startswith("How equal scores rank: stable")
    assert options["eval.ties"].meaning.endswith("empty: what the protocol says.")
    assert not [name for name, option in options.items() if not option.meaning]


def test_no_option_has_the_meaning_of_another():
    options = recipes.options()
    named = {option.meaning: name for name, option in options.items()}
    assert [name for name, option in options.items() if named[option.meaning] != name] == []
