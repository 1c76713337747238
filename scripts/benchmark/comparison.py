"""What a comparison is: tasks, and of each the ways to do it, on the same inputs.

Every file of `comparisons/` is one, and defines COMPARISON; a file elsewhere may be given by its
path. It imports a framework only inside the functions that need it, so that the process of a case
holds no other.
"""

import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlic_jax.errors import UsageError

FOLDER = Path(__file__).with_name("comparisons")

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Case:
    """One way to do a task.

    Attributes:
        variant: who does it, and how.
        framework: one of `FRAMEWORKS`; `host` is what never leaves the host's memory. It decides
            what arrays `make` gets and on which devices it is measured.
        make: (inputs, sizes) -> a function to be timed, without arguments, that returns its outputs
            as arrays by name. All that is done once (models, layouts, `jit`) belongs in `make`.
        time_target: how many times the first case's time this one's should at least take on a CPU.
        peak_target: the same of the peak memory.
        tolerance: in the place of the task's.
    """

    variant: str
    framework: str
    make: Callable[[dict[str, Any], Sizes], Callable[[], dict[str, Any]]]
    time_target: float | None = None
    peak_target: float | None = None
    tolerance: float | None = None

    def without_targets(self) -> "Case":
        return replace(self, time_target=None, peak_target=None)


@dataclass(frozen=True)
class Task:
    """Cases on the same inputs; the others are relative to the first.

    Attributes:
        name: what is done. A size in braces, as in `at {image_size} px`, becomes its value.
        inputs: sizes -> NumPy arrays in (nested) dicts, always the same for the same sizes.
        cases: every variant once.
        sizes: beside those of the comparison.
        tolerance: how far outputs of the same name may be apart, relative to the largest value;
            None where the others are limits, which compute less.
        measures_memory: False where it does not matter, or where a case works in processes of its
            own, whose memory is not seen.
        shows_rate: images a second are what people ask for, not the time of a call.
    """

    name: str
    inputs: Callable[[Sizes], dict[str, Any]]
    cases: tuple[Case, ...]
    sizes: Sizes = field(default_factory=dict)
    tolerance: float | None = 1e-4
    measures_memory: bool = True
    shows_rate: bool = False

    @property
    def title(self) -> str:
        return self.name.format_map(self.sizes)

    def case(self, variant: str) -> Case:
        return next(case for case in self.cases if case.variant == variant)


@dataclass(frozen=True)
class Comparison:
    """Tasks that belong together.

    Attributes:
        title: a heading.
        sizes: of the inputs of all tasks, by name.
        small: of these and of sizes that tasks add: what a run of seconds takes instead.
        tasks: of different names.
    """

    title: str
    sizes: Sizes
    small: Sizes
    tasks: tuple[Task, ...]

    @property
    def frameworks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(case.framework for task in self.tasks for case in task.cases))

    def task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)

    def resized(self, small: bool, sizes: Sizes) -> "Comparison":
        """This comparison with all sizes of every task filled in.

        Tasks that come to the same title are the same, and only the first of them stays. Targets
        are of the sizes as they stand: with others there are none.

        Args:
            small: whether at the small sizes.
            sizes: to be replaced, of the tasks that have them.

        Raises:
            UsageError: no task has a size of such a name.
        """
        known = dict.fromkeys(name for task in self.tasks for name in {**self.sizes, **task.sizes})
        for name in sizes:
            if name not in known:
                raise UsageError(f"there is no size {name!r}; known are {', '.join(known)}")
        wanted = {**(self.small if small else {}), **sizes}

        def fill(given: Sizes) -> dict[str, int]:
            return {name: wanted.get(name, value) for name, value in given.items()}

        tasks: dict[str, Task] = {}
        for task in self.tasks:
            task = replace(task, sizes=fill({**self.sizes, **task.sizes}))
            if wanted:
                task = replace(task, cases=tuple(case.without_targets() for case in task.cases))
            tasks.setdefault(task.title, task)
        return replace(self, sizes=fill(self.sizes), tasks=tuple(tasks.values()))

    def only(self, words: Collection[str]) -> "Comparison":
        """The tasks alone whose title has all of these words in it.

        Raises:
            UsageError: there is none.
        """
        tasks = tuple(task for task in self.tasks if all(word in task.title for word in words))
        if not tasks:
            titles = "; ".join(task.title for task in self.tasks)
            raise UsageError(f"no task has {' and '.join(words)} in its name; they are {titles}")
        return replace(self, tasks=tasks)


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
        raise UsageError(f"there is no comparison {name!r}; known are all, {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"comparison_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "COMPARISON"):
        raise UsageError(f"{name} defines no COMPARISON")
    return module.COMPARISON
