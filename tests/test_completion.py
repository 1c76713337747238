"""What a shell completes."""

import re
import shutil
import subprocess

import pytest

from mlic_jax import completion, recipes
from mlic_jax.__main__ import LISTS, MODULES, flags_of_commands


@pytest.fixture(scope="module")
def commands():
    return flags_of_commands()


def test_flags_are_those_of_the_help(commands):
    assert {"--config", "--workdir", "--recover"} < set(commands["train"])
    assert "--images" not in commands["train"]
    assert {"--images", "--on-corrupt", "--config"} < set(commands["prepare"])  # of both its forms
    assert {"--checkpoint", "--bootstrap"} < set(commands["evaluate"])
    assert "--train-steps" in commands["verify"]
    assert all("--help" in commands[name] for name in MODULES)
    assert all(not commands[name] for name in LISTS)
    assert all(re.fullmatch(r"--[a-z][\w-]*", flag) for of in commands.values() for flag in of)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["prep"], ["prepare"]),
        (["train", "--rec"], ["--recover"]),
        (["verify", "--train"], ["--train-steps"]),
        (["train", "--config", "mcar_voc"], ["mcar_voc2007", "mcar_voc2012"]),
        (["train", "--config", "=", "msrn_a"], ["msrn_apparel"]),  # as bash cuts it
        (["train", "--config", "="], list(recipes.known())),
        (["train", "--config=msrn_a"], ["--config=msrn_apparel"]),  # as zsh leaves it
        (["train", "--config.optim.mom"], ["--config.optim.momentum"]),
        (["train", "--config.optim.name", "=", ""], ["sgd", "adam", "adamw"]),
        (["completion", "f"], ["fish"]),
        (["predict", "photo"], []),  # files, which bash completes itself
    ],
)
def test_bash(words, completed, commands, tmp_path):
    script = (
        f"{completion.bash(commands)}\n"
        f"COMP_WORDS=(mlic {' '.join(repr(word) for word in words)})\n"
        f"COMP_CWORD={len(words)}\n_mlic\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    answer = subprocess.run(
        ["bash", "-uc", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert answer.stderr == ""
    assert answer.stdout.split() == completed


def test_zsh_reads_the_script_of_bash(commands):
    first, rest = completion.zsh(commands).split("\n", 1)
    assert first == "autoload -U +X bashcompinit && bashcompinit"
    assert rest == completion.bash(commands)


def test_fish(commands):
    script = completion.fish(commands)
    assert "complete -c mlic -f -n __fish_use_subcommand -a 'train evaluate" in script
    seen = "complete -c mlic -n '__fish_seen_subcommand_from train' -l"
    assert f"{seen} recover\n" in script
    assert f"{seen} config -x -a '{' '.join(recipes.known())}'\n" in script
    assert f"{seen} config.optim.name -x -a 'sgd adam adamw'\n" in script
    if shutil.which("fish"):
        subprocess.run(["fish", "--no-execute"], input=script, text=True, check=True)
