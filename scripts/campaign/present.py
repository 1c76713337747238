"""What came of a campaign, for people and programs: JSON, a table, and its place in a page."""

import json
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from fuzzer import load, names

from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import write_text

MARK = "campaign"  # of the place of the table in a page

_KINDS_SHOWN = 6


@dataclass(frozen=True)
class Fault:
    """A case that did not hold, and what of it did before."""

    seed: int
    case: int
    message: str
    held: dict[str, int] = field(default_factory=dict)

    def command(self, name: str) -> str:
        """What runs it again."""
        return f"python scripts/campaign/run.py {name} --seed {self.seed} --only {self.case}"


@dataclass
class Tally:
    """All that a fuzzer tried.

    Attributes:
        name: of the fuzzer.
        seed: of its cases.
        cases: how many were run, from case 0 on.
        seconds: that they took.
        held: of each kind how many units held.
        faults: the cases that did not hold.
        machine: where they were run.
    """

    name: str
    seed: int
    cases: int = 0
    seconds: float = 0.0
    held: Counter = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    machine: str = ""

    @property
    def tried(self) -> int:
        return self.held.total() + len(self.faults)

    @classmethod
    def read(cls, file: Path) -> "Tally":
        """What `write` wrote; raises UsageError where that is not there or not whole."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            fields["held"] = Counter(fields["held"])
            fields["faults"] = [Fault(**fault) for fault in fields["faults"]]
            return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{file} holds no results of a campaign: {error}") from error

    def write(self, folder: Path) -> None:
        """Writes `<folder>/<name>.json`."""
        content = asdict(self) | {"held": dict(sorted(self.held.items()))}
        write_text(folder / f"{self.name}.json", json.dumps(content, indent=1) + "\n")


def this_machine() -> str:
    """The processor, the system and the versions that results depend on."""
    import os

    cores = len(os.sched_getaffinity(0))
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = " ".join(line.partition(":")[2].split())
            break
    return (
        f"{cores} cores of {model}, Linux {platform.release().split('-')[0]}, Python "
        f"{platform.python_version()}, JAX {version('jax')}, Orbax {version('orbax-checkpoint')}"
    )


def read_all(folder: Path) -> list[Tally]:
    """The results of a folder, in the order of the fuzzers."""
    files = (folder / f"{name}.json" for name in names())
    return [Tally.read(file) for file in files if file.is_file()]


def to_markdown(tallies: Iterable[Tally]) -> str:
    """The table, below it what failed with the command that shows it again, and the machine."""
    tallies = list(tallies)
    lines = [
        "| fuzzer | tried | held | failed | minutes | of which |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for tally in tallies:
        fuzzer = load(tally.name)
        cells = (
            f"[{tally.name}](#{tally.name.replace('_', '-')})",
            f"{tally.tried:,} {fuzzer.units}",
            f"{tally.held.total():,}",
            f"**{len(tally.faults)}**" if tally.faults else "0",
            f"{tally.seconds / 60:.1f}",
            _kinds(tally.held),
        )
        lines.append(f"| {' | '.join(cells)} |")
    faults = [(tally.name, fault) for tally in tallies for fault in tally.faults]
    if faults:
        lines += ["", "What failed:", ""]
        for name, fault in faults:
            first = fault.message.strip().splitlines()[-1][:200].replace("`", "'")
            lines.append(f"- `{fault.command(name)}`: {first}")
    machines = dict.fromkeys(tally.machine for tally in tallies)
    lines += ["", f"On {'; '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _kinds(held: Counter) -> str:
    shown = [f"{count:,} {kind}" for kind, count in held.most_common(_KINDS_SHOWN)]
    rest = held.total() - sum(count for _, count in held.most_common(_KINDS_SHOWN))
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))
