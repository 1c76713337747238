"""Scripts with which a shell completes the command `mlic`: commands, flags, recipes and options.

They hold all words, so that a shell need not start Python to complete one.
"""

from collections.abc import Callable, Iterable, Mapping

from mlic_jax import recipes
from mlic_jax.config import CHOICES

Commands = Mapping[str, Iterable[str]]  # and the flags of each

# What a shell hands over differs: bash cuts a word at `=` and gives the parts, zsh gives it whole.
_BASH = """\
_mlic() {
    local word=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD-1]} prefix= words=
    if [[ $word == = ]]; then word=
    elif [[ $option == = ]]; then option=${COMP_WORDS[COMP_CWORD-2]}
    elif [[ $word == --*=* ]]; then option=${word%%=*} prefix=${word%%=*}= word=${word#*=}
    fi
    if [[ $COMP_CWORD == 1 ]]; then words="COMMANDS"
    elif [[ -z $prefix && $word == --config.* ]]; then words="OPTIONS"
    elif [[ -z $prefix && $word == -* ]]; then
        case ${COMP_WORDS[1]} in
FLAGS
        esac
    else
        case $option in
CHOICES
        esac
    fi
    COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$word"))
}
complete -o default -F _mlic mlic
"""


def bash(commands: Commands) -> str:
    """For `eval "$(mlic completion bash)"`."""

    def cases(words: Mapping[str, Iterable[str]]) -> str:
        lines = [f'{name}) words="{" ".join(known)}" ;;' for name, known in words.items() if known]
        return "\n".join(f"            {line}" for line in lines)

    return (
        _BASH.replace("COMMANDS", " ".join(commands))
        .replace("OPTIONS", " ".join(f"--config.{name}" for name in recipes.options()))
        .replace("FLAGS", cases(commands))
        .replace("CHOICES", cases(_choices()))
    )


def zsh(commands: Commands) -> str:
    """For `eval "$(mlic completion zsh)"`; zsh understands the completions of bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(commands)}"


def fish(commands: Commands) -> str:
    """For `mlic completion fish | source`."""
    choices = _choices()
    options = [f"--config.{name}" for name in recipes.options()]
    lines = [f"complete -c mlic -f -n __fish_use_subcommand -a '{' '.join(commands)}'"]
    for command, flags in commands.items():
        known = [*flags, *(options if "--config" in flags else ())]
        for flag in known:
            values = f" -x -a '{' '.join(choices[flag])}'" if flag in choices else ""
            seen = f"'__fish_seen_subcommand_from {command}'"
            lines.append(f"complete -c mlic -n {seen} -l {flag.removeprefix('--')}{values}")
    return "\n".join(lines)


def _choices() -> Mapping[str, Iterable[str]]:
    """The flags whose values are known: recipes, and options that are one of a few names."""
    names = {f"--config.{name}": [n for n in known if n] for name, known in CHOICES.items()}
    return {"--config": recipes.known(), "completion": SCRIPTS, **names}


SCRIPTS: dict[str, Callable[[Commands], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
