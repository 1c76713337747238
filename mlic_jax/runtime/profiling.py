"""Profiles of a loop: a trace of a few steps for Perfetto and XProf, and where their time went.

The trace is JAX's. The summary is read from it: what the host did in each step (the phases that
`annotated` names), and which operations of the compiled programs ran on the devices.
"""

import collections
import contextlib
import functools
import gzip
import heapq
import itertools
import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.profiler import ProfileData
from tqdm import tqdm

from mlic_jax.files.atomic import write_text

# The first steps are slower, and fill what is in flight.
SKIPPED_STEPS = 3
TRACED_STEPS = 5
LISTED = 12

# What the host does in a step, as the trace calls it.
WAIT_FOR_DATA = "wait for data"
TO_DEVICES = "transfer to devices"
DISPATCH = "dispatch"
WAIT_FOR_DEVICES = "wait for devices"
VALIDATE = "validate"
SAVE = "save"
PHASES = (WAIT_FOR_DATA, TO_DEVICES, DISPATCH, WAIT_FOR_DEVICES, VALIDATE, SAVE)
PYTHON = "python"  # the rest of the step

# What the devices do. A group is decided by the HLO opcodes that an operation contains.
PRODUCTS = "convolutions and matrix products"
ELEMENTWISE = "elementwise and reductions"
MOVES = "copies and transposes"
COLLECTIVES = "collectives"
OTHER = "other operations"
BETWEEN = "between operations"
WAITING = "waiting for the host"

COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(-start|-done)?"
)
# Opcodes, and what the libraries call theirs (as in __cublas$gemm).
PRODUCT = re.compile(r"(ragged-)?dot|(?!convert).*(gemm|matmul|conv).*", re.IGNORECASE)
MOVE = re.compile(
    r"(copy|dynamic|memcpy|memset).*|transpose|reshape|broadcast|concatenate|slice|pad|reverse",
    re.IGNORECASE,
)
FREE = re.compile(r"parameter|constant|iota|tuple|get-tuple-element|bitcast|fusion|wrapped")
CONTROL = re.compile(r"while|conditional|call|custom-call|sort|fft|infeed|outfeed|send.*|recv.*")

F = TypeVar("F", bound=Callable[..., Any])

COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][a-z0-9-]*)\((.*)")
CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
SOURCE = re.compile(r'op_name="\(?(?:jit\([^"/]*\)/)?([^":]*)')
MODULE = re.compile(r"(?!(while|body|cond|branch_\w+|closed_call|checkpoint|shard_map)$)[a-z]\w*")
METHOD = re.compile(r"\w+\.\w+")


class Operation(NamedTuple):
    """A run of one operation of a compiled program on one device; in nanoseconds of the trace."""

    start: float
    end: float
    program: str
    name: str
    run: Any  # which run of the program; None where the platform does not tell


def annotated(phase: str) -> Callable[[F], F]:
    """A decorator: a trace shows every call as `phase`, one of PHASES."""
    return functools.partial(jax.profiler.annotate_function, name=phase)


def profiled(
    batches: Generator[dict[str, np.ndarray]], total: int, loop: str, folder: Path | None
) -> Generator[dict[str, np.ndarray]]:
    """Yields the batches of a loop, traces the loop's body for a few of them, and closes them.

    After `SKIPPED_STEPS` (fewer where the loop is short) it traces `TRACED_STEPS`, writes the trace
    and its summary into `folder`, prints the summary, and lets the loop go on. Every process of a
    run writes its own trace; the summary is that of process 0.

    Args:
        batches: this process's rows, with an `index` that is negative for padding.
        total: how many batches there are.
        loop: what the trace calls a step, as in "train".
        folder: where to write; None traces nothing.
    """
    skipped = min(SKIPPED_STEPS, total // 2)
    traced = min(TRACED_STEPS, total - skipped)
    with contextlib.closing(batches):
        if folder is not None and traced:
            yield from itertools.islice(batches, skipped)
            yield from _traced(batches, range(skipped, skipped + traced), loop, folder)
        yield from batches


def _traced(
    batches: Iterator[dict[str, np.ndarray]], steps: range, loop: str, folder: Path
) -> Iterator[dict[str, np.ndarray]]:
    options = jax.profiler.ProfileOptions()
    # Else the processes of one machine would write files of one name.
    options.session_id = f"process_{jax.process_index()}"
    options.python_tracer_level = 0  # a record of every call would be most of what is measured
    images = 0
    jax.profiler.start_trace(folder, profiler_options=options)
    try:
        for step in steps:
            with jax.profiler.StepTraceAnnotation(loop, step_num=step):
                with jax.profiler.TraceAnnotation(WAIT_FOR_DATA):
                    batch = next(batches)
                images += int(np.sum(batch["index"] >= 0)) * jax.process_count()
                yield batch
    finally:
        jax.block_until_ready(jax.live_arrays())  # what was dispatched belongs to the trace
        jax.profiler.stop_trace()
    if jax.process_index() == 0:
        write_profile(folder, folder / "plugins" / "profile" / options.session_id, loop, images)


def write_profile(folder: Path, session: Path, loop: str, images: int) -> None:
    """Writes `perfetto_trace.json.gz`, `summary.json` and `summary.txt`, and prints the summary.

    Args:
        folder: where to write.
        session: the folder of JAX's trace.
        loop, images: see `summarize`.
    """
    (events_path,), (trace_path,) = session.glob("*.trace.json.gz"), session.glob("*.xplane.pb")
    events = json.loads(gzip.decompress(events_path.read_bytes()))
    events.pop("metadata", None)  # Perfetto refuses it
    perfetto = folder / "perfetto_trace.json.gz"
    perfetto.write_bytes(gzip.compress(json.dumps(events).encode()))
    summary = summarize(ProfileData.from_file(str(trace_path)), loop, images)
    text = table(summary)
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    write_text(folder / "summary.txt", text + "\n")
    tqdm.write(f"{text}\nOpen {perfetto} at https://ui.perfetto.dev, or {folder} in XProf.")


def summarize(trace: ProfileData, loop: str, images: int) -> dict[str, Any]:
    """Where the time of the traced steps went, as seconds and shares of the mean step.

    `host` divides the step into what the loop's thread did, `device` into groups of operations,
    `WAITING` (no program runs) and `BETWEEN` (a program runs, none of its operations does): each
    adds up to the step. The devices' times are means over those of this process. `operations` are
    all that ran, the longest first, with their source in the model; `parts` add them up by it.

    Args:
        trace: with steps named `loop`.
        images: of all traced steps.
    """
    steps, host = host_phases(trace, loop)
    window = steps[0][0], steps[-1][1]
    devices = device_operations(trace)
    divided = [divide(operations, window) for operations in devices]
    programs = {o.program for operations in devices for o in operations}
    contents = {name: read_program(name) for name in programs}

    def part(nanoseconds: float) -> dict[str, float]:
        share = nanoseconds / (window[1] - window[0])
        return {"seconds": nanoseconds * 1e-9 / len(steps), "share": share}

    total: collections.Counter[Any] = collections.Counter()
    for times in divided:
        total.update({what: time / len(devices) for what, time in times.items()})
    device = dict.fromkeys((PRODUCTS, ELEMENTWISE, MOVES, COLLECTIVES, OTHER), 0.0)
    device |= {name: total.pop(name, 0.0) for name in (BETWEEN, WAITING)} if devices else {}
    parts: collections.Counter[str] = collections.Counter()
    described = []
    for (program, name), time in total.most_common():
        opcodes, source = contents[program].get(name, (opcodes_of_name(name), ""))
        device[group_of(opcodes)] += time
        parts[part_of(source)] += time
        described.append({"name": name, "program": program, "group": group_of(opcodes)})
        described[-1] |= {"source": source, **part(time)}
    step_seconds = part(window[1] - window[0])["seconds"]
    return {
        "loop": loop,
        "steps": len(steps),
        "platform": jax.default_backend(),
        "devices": len(devices),
        "step_seconds": step_seconds,
        "images_per_second": images / len(steps) / step_seconds,
        "host": {name: part(time) for name, time in host.items()},
        "device": {name: part(time) for name, time in device.items()} if devices else {},
        "parts": {name: part(time) for name, time in parts.most_common()},
        "operations": described,
    }


def host_phases(
    trace: ProfileData, loop: str
) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """Beginning and end of every step, and the nanoseconds of PHASES and PYTHON in all of them."""
    for line in trace.find_plane_with_name("/host:CPU").lines:
        events = [(e.start_ns, e.start_ns + e.duration_ns, e) for e in line.events]
        steps = sorted((s, e) for s, e, event in events if event.name == loop)
        if not steps:
            continue  # not the loop's thread
        times = dict.fromkeys(PHASES, 0.0)
        last_end = steps[0][0]
        spans = sorted((s, -e, event.name) for s, e, event in events if event.name in times)
        for start, negative_end, phase in spans:
            end = min(-negative_end, steps[-1][1])
            if start >= last_end and end > start:  # else it is within another phase
                times[phase] += end - start
                last_end = end
        times[PYTHON] = steps[-1][1] - steps[0][0] - sum(times.values())
        return steps, times
    raise ValueError(f"no step named {loop!r} is in the trace")


def device_operations(trace: ProfileData) -> list[list[Operation]]:
    """The operations of each device of this process.

    An accelerator's are the events of its plane; a CPU device's are those of the threads of the
    host that say which operation of a program they are.
    """
    devices: dict[Any, list[Operation]] = collections.defaultdict(list)
    for plane in trace.planes:
        lines = list(plane.lines)
        accelerator = plane.name.startswith("/device:") and "CUSTOM" not in plane.name
        # A TPU's plane has lines of its steps and programs too.
        lines = [line for line in lines if line.name == "XLA Ops"] or lines
        for line in lines if accelerator or plane.name == "/host:CPU" else ():
            for event in line.events:
                stats = dict(event.stats)
                if not accelerator and "hlo_op" not in stats:
                    continue
                device = plane.name if accelerator else stats.get("device_ordinal", 0)
                devices[device].append(
                    Operation(
                        event.start_ns,
                        event.start_ns + event.duration_ns,
                        str(stats.get("hlo_module", "")),
                        str(stats.get("hlo_op", event.name.split(" = ")[0].lstrip("%"))),
                        stats.get("run_id"),
                    )
                )
    return list(devices.values())


def divide(operations: list[Operation], window: tuple[float, float]) -> dict[Any, float]:
    """Divides the window among the (program, name) of a device's operations, BETWEEN and WAITING.

    Of operations that run at once, as a loop and those within it, the last to start gets the time.
    """
    runs: dict[Any, tuple[float, float]] = {}
    for o in operations:
        run = (o.program, o.run) if o.run is not None else o
        start, end = runs.get(run, (o.start, o.end))
        runs[run] = min(start, o.start), max(end, o.end)
    # The deepest at a time has it: nothing runs, a program does, an operation of it does.
    spans: list[tuple[int, float, float, Any]] = [(0, *window, WAITING)]
    spans += [(1, start, end, BETWEEN) for start, end in runs.values()]
    spans += [(2, o.start, o.end, (o.program, o.name)) for o in operations]
    spans = [span for span in spans if span[1] < window[1] and span[2] > window[0]]
    to_start = collections.deque(sorted(spans, key=lambda span: span[1]))
    clipped = (min(max(time, window[0]), window[1]) for span in spans for time in span[1:3])

    times: dict[Any, float] = collections.defaultdict(float)
    running: list[tuple[int, float, float, Any]] = []  # a heap, of which the first has the time
    for now, then in itertools.pairwise(sorted(set(clipped))):
        while to_start and to_start[0][1] <= now:
            depth, start, end, what = to_start.popleft()
            heapq.heappush(running, (-depth, -start, end, what))
        while running[0][2] <= now:
            heapq.heappop(running)
        times[running[0][3]] += then - now
    return times


def read_program(name: str) -> dict[str, tuple[frozenset[str], str]]:
    """`parse_program` of the living programs of a name."""
    found: dict[str, tuple[frozenset[str], str]] = {}
    for executable in jax.local_devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            if module.name == name:
                found |= parse_program(module.to_string())
    return found


def parse_program(text: str) -> dict[str, tuple[frozenset[str], str]]:
    """Of every operation in the text of a compiled program: the opcodes in it and its source.

    The source is a path through the model, as in `jvp(MCAR)/MCAR.look/features/stem/mul`, the first
    of several; empty where the compiler does not tell.
    """
    instructions: dict[str, tuple[str, str]] = {}
    computations: dict[str, list[str]] = {}
    members: list[str] = []
    for line in text.splitlines():
        if found := INSTRUCTION.match(line):
            name, opcode, rest = found.groups()
            instructions[name] = opcode, rest
            members.append(name)
        elif found := COMPUTATION.match(line):
            members = computations[found[1]] = []

    @functools.cache
    def opcodes_of(name: str) -> frozenset[str]:
        opcode, rest = instructions[name]
        if opcode in ("fusion", "call") and (called := CALLED.search(rest)):
            return frozenset().union(*map(opcodes_of, computations[called[1]]))
        return frozenset((opcode, *TARGET.findall(rest)))

    def source_of(name: str) -> str:
        found = SOURCE.search(instructions[name][1])
        return found[1].replace("/(", "/") if found else ""

    return {name: (opcodes_of(name), source_of(name)) for name in instructions}


def opcodes_of_name(name: str) -> frozenset[str]:
    """What an operation tells by its name where the program is not known (`transpose_copy.1`)."""
    return frozenset(word for word in re.split(r"[._]", name) if word and not word.isdigit())


def group_of(opcodes: Collection[str]) -> str:
    """The group of an operation that contains these opcodes."""
    opcodes = {opcode for opcode in opcodes if not FREE.fullmatch(opcode)}
    if any(map(COLLECTIVE.fullmatch, opcodes)):
        return COLLECTIVES
    if any(map(PRODUCT.fullmatch, opcodes)):
        return PRODUCTS
    if any(map(CONTROL.fullmatch, opcodes)):
        return OTHER
    return MOVES if all(map(MOVE.fullmatch, opcodes)) else ELEMENTWISE


def part_of(source: str) -> str:
    """The part of the model that an operation belongs to, as in `features/layer1, backward`."""
    path = source.split("/")[:-1]
    modules = [name for name in path if MODULE.fullmatch(name)]
    methods = [name for name in path if METHOD.fullmatch(name)]
    if not modules and not methods:
        return "outside of the model" if source else "fused from many parts"
    # Blocks of a stage (layer1_0 and its kin) are one part.
    name = re.sub(r"_\d+$", "", "/".join(modules[:2])) or methods[-1]
    return f"{name}, backward" if "transpose(" in source else name


def table(summary: Mapping[str, Any]) -> str:
    """The summary for a person who reads it in a terminal."""

    def row(name: str, part: Mapping[str, float], note: str = "") -> str:
        return f"  {name:34} {1000 * part['seconds']:9.2f} ms {part['share']:7.1%}  {note}".rstrip()

    lines = [
        f"{summary['loop']}: {summary['steps']} steps of {1000 * summary['step_seconds']:.2f} ms, "
        f"{summary['images_per_second']:.1f} images/s, "
        f"{summary['devices']} {summary['platform']} device(s)"
    ]
    for side in ("host", "device"):
        lines.append(f"{side}, of a step:")
        lines += [row(name, part) for name, part in summary[side].items() if part["seconds"]]
    lines.append("parts of the model that took longest:")
    lines += [row(*item) for item in [*summary["parts"].items()][:LISTED]]
    lines.append("operations that took longest:")
    lines += [row(o["name"], o, o["source"]) for o in summary["operations"][:LISTED]]
    return "\n".join(lines)
