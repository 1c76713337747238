"""What a comparison is: ways to compute the same thing, on the same inputs.

Every file of `comparisons/` is one, and defines COMPARISON; a file elsewhere may be given by its
path. It imports a framework only inside the functions that need it, so that the process of a case
holds no other.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlic_jax.errors import UsageError

FOLDER = Path(__file__).with_name("comparisons")

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Case:
    """One way to do a task.

    Attributes:
        task: what is done. The first case of a task is what the others are relative to.
        variant: who does it, and how.
        framework: `jax`, `torch`, or `host` for what never leaves the host's memory. It decides
            what arrays `make` gets and on which devices it is measured.
        make: (inputs, sizes) -> a function to be timed, without arguments, that returns its outputs
            as arrays by name. All that is done once (models, layouts, `jit`) belongs in `make`.
    """

    task: str
    variant: str
    framework: str
    make: Callable[[dict[str, Any], Sizes], Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Comparison:
    """Cases, and what they are compared on.

    Attributes:
        title: a heading.
        sizes: of the inputs, by name.
        small: the same names, for a run of seconds.
        inputs: sizes -> NumPy arrays in (nested) dicts, always the same for the same sizes.
        cases: those of one task next to each other.
        tolerance: how far outputs of the same name may be apart, relative to the largest value.
        measures_memory: False where a case works in processes of its own, whose memory is not seen.
    """

    title: str
    sizes: Sizes
    small: Sizes
    inputs: Callable[[Sizes], dict[str, Any]]
    cases: tuple[Case, ...]
    tolerance: float = 1e-4
    measures_memory: bool = True

    def resized(self, small: bool, sizes: Sizes) -> "Comparison":
        """This comparison at its small sizes, or with some sizes replaced.

        Raises:
            UsageError: it has no size of such a name.
        """
        known = dict(self.small if small else self.sizes)
        for name in sizes:
            if name not in known:
                raise UsageError(f"there is no size {name!r}; known are {', '.join(known)}")
        return replace(self, sizes=known | dict(sizes))


def names() -> list[str]:
    """The comparisons that there are, one a file."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> Comparison:
    """A comparison by its name, or by the path of a file that defines COMPARISON.

    Raises:
        UsageError: there is none.
    """
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file():
        raise UsageError(f"there is no comparison {name!r}; known are {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"comparison_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "COMPARISON"):
        raise UsageError(f"{name} defines no COMPARISON")
    return module.COMPARISON
