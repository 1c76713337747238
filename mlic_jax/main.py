"""What works with models: `python -m mlic_jax.main --mode MODE ...`, or `mlic MODE ...`.

Flags and dispatch alone. Any option of the configuration can be set on the command line, as in
`--config.batch_size=32`; `mlic options` lists them all. A checkpoint needs no recipe:
`python -m mlic_jax.main --mode evaluate --workdir runs/scenes`.
"""

import contextlib
import getpass
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from mlic_jax import recipes
from mlic_jax.command_line import (
    NearEnumParser,
    asked_of_config,
    called_mlic,
    exit_code,
    hush_strays,
    parse_flags,
    required,
    show_log,
)
from mlic_jax.config_checks import check_config
from mlic_jax.errors import UsageError
from mlic_jax.names import RUNTIMES, require_one_of
from mlic_jax.predict.finding import check_is_there
from mlic_jax.runtime import processes
from mlic_jax.runtime.checkpoint_paths import candidates

MODES = {
    "train": "train a model, or go on with a run that was interrupted",
    "evaluate": "the metrics and the report of a run or a converted model",
    "diagnose": "why a run fails: errors by cause, where it looks, the photos that cost most",
    "calibrate": "learn the thresholds that prediction uses",
    "doubt": "labels of a run's set that are probably wrong or missing, and photos that look alike",
    "review": "a page that asks a person for labels in doubt, and for photos without any",
    "predict": "the labels of photos",
    "serve": "a page to drop photos on",
    "export": "a bundle that labels photos without JAX or this package",
    "prepare": "--config RECIPE: prepare its set, and no more",
}
CONFIG = recipes.define_flag("config", "The recipe, a name or file, as in mcar_coco:resnet50,448.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder, as in runs/scenes.")
MODE = flags.DEFINE(NearEnumParser(MODES), "mode", "train", f"What to do: {', '.join(MODES)}.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, or a converted model.")
IMAGES = flags.DEFINE_string(
    "images",
    None,
    "predict, export: a folder, a file, or a pattern in quotes; of export the photos that prove "
    "the bundle, by default some of the validation split.",
)
OUT = flags.DEFINE_string("out", None, "predict, export: the folder to write.")
FLIP = flags.DEFINE_bool("flip", None, "predict: average with the mirrored photos.")
SCALES = flags.DEFINE_list("scales", None, "predict: average over more sizes, as in 448,512.")
flags.register_validator(
    SCALES, lambda sizes: all(map(str.isdecimal, sizes or ())), "not in pixels"
)
LOCAL_SIZE = flags.DEFINE_integer("local_size", None, "predict: pixels of MCAR's crops.")
LOCAL_BOUND = flags.DEFINE_float("local_bound", None, "predict: no crops of less likely classes.")
RUNTIME = flags.DEFINE_string(
    "runtime", "jax", "predict: what runs it; of a bundle as --checkpoint onnxruntime or openvino."
)
RESUME = flags.DEFINE_bool("resume", False, "predict: go on with what --out has, done or not.")
LABEL_TREE = flags.DEFINE_string(
    "label_tree",
    None,
    "predict: a file of rules `dog < animal`, which scores are made to agree with.",
)
SIDECARS = flags.DEFINE_bool("sidecars", False, "predict: labels into XMP files beside photos.")
FORMATS = flags.DEFINE_list("formats", ["stablehlo", "onnx"], "export: stablehlo, onnx, web.")
SIZE = flags.DEFINE_integer("size", None, "export: pixels of a side; default: the checkpoint's.")
BATCH = flags.DEFINE_string("batch", "any", "export: photos at a time, a number or any.")
PRECISION = flags.DEFINE_string("precision", "float32", "export: float32, bfloat16, or int8.")
ALLOW = flags.DEFINE_bool("allow", False, "export: int8 to cost more than a point of mAP.")
SPLITS = flags.DEFINE_list("splits", ["train", "val", "test"], "doubt: whose labels, by role.")
LICENCE = flags.DEFINE_string("licence", "", "export: of the weights, a line for the model card.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "serve, review: the address to listen on.")
WHO = flags.DEFINE_string(
    "who", None, "review: your name, beside your answers; default: the login."
)
RECOVER = flags.DEFINE_bool("recover", False, "train: set damaged checkpoints aside before.")
ALLOW_CHANGES = flags.DEFINE_bool(
    "allow_changes", False, "train: resume with options that change what has been."
)
PROFILE = flags.DEFINE_bool("profile", False, "train, evaluate: trace a few steps and sum them up.")
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "On a GPU: the same numbers to the bit every time, more slowly."
)
PORT = flags.DEFINE_integer("port", 7860, "serve, review: 0 takes one that is free.", 0, 65535)
OF_PROCESSES = (
    *(processes.DISTRIBUTED, processes.COORDINATOR, processes.NUM_PROCESSES, processes.PROCESS_ID),
    *(processes.JOIN_SECONDS, processes.LOST_SECONDS),
)

# In a mode that does not know it, a flag is a mistake: in a recipe flip is `config.eval.flip`.
FLAGS_OF_MODES = {
    ("train", "evaluate", "diagnose", "prepare", "calibrate", "doubt", "review"): (CONFIG, WORKDIR),
    ("evaluate", "diagnose", "calibrate", "doubt", "review", "predict", "serve", "export"): (
        CHECKPOINT,
    ),
    ("doubt",): (SPLITS,),
    ("predict", "export"): (IMAGES, OUT),
    ("predict",): (FLIP, SCALES, LOCAL_SIZE, LOCAL_BOUND, LABEL_TREE, RUNTIME, RESUME, SIDECARS),
    ("export",): (FORMATS, SIZE, BATCH, PRECISION, ALLOW, LICENCE),
    ("serve", "review"): (HOST, PORT),
    ("review",): (WHO,),
    ("train",): (RECOVER, ALLOW_CHANGES),
    ("train", "evaluate"): (PROFILE,),
    ("train", "evaluate", "calibrate", "predict"): (DETERMINISTIC,),
}


@processes.joined(MODE, ("train", "evaluate"))
def main(argv: list[str]) -> None:
    """Runs the mode; raises UsageError or Failure."""
    if len(argv) > 1:
        hint = "options are --name=value"
        if IMAGES.present and Path(argv[1]).exists():
            hint = "a pattern stands in quotes, as in --images 'photos/*.jpg'"
        raise UsageError(f"unexpected argument {argv[1]!r}; {hint}")
    # What libraries say of every step of theirs; what fails is said once, at the end.
    absl_logging.set_verbosity(absl_logging.FATAL)
    # Modules are imported only when needed, so that --help, a wrong flag and a folder without a
    # checkpoint answer at once.
    if MODE.value in ("predict", "serve"):
        look_at_photos()
    elif MODE.value == "export":
        export()
    elif MODE.value in ("evaluate", "diagnose", "calibrate", "doubt", "review"):
        look_at_a_split()
    else:
        work_on_a_set()


def look_at_photos() -> None:
    """The modes that need a checkpoint alone."""
    checkpoint = required(CHECKPOINT)
    if MODE.value == "predict":
        check_is_there(required(IMAGES))
        required(OUT)
    require_one_of("--runtime", RUNTIME.value, RUNTIMES)
    if RUNTIME.value == "jax":
        candidates(checkpoint)
    from mlic_jax.predict import files, serve
    from mlic_jax.runtime import compilation

    compilation.keep_programs()
    if MODE.value == "serve":
        serve.serve(checkpoint, HOST.value, PORT.value)
        return
    scales = None if SCALES.value is None else [int(size) for size in SCALES.value]
    open_model = files.open_checkpoint
    if RUNTIME.value != "jax":
        from mlic_jax.export.predictor import open_bundle

        open_model = partial(open_bundle, runtime=RUNTIME.value)
    files.predict_files(
        checkpoint,
        required(IMAGES),
        required(OUT),
        resume=RESUME.value,
        sidecars=SIDECARS.value,
        open_model=open_model,
        flip=FLIP.value,
        scales=scales,
        local_size=LOCAL_SIZE.value,
        local_bound=LOCAL_BOUND.value,
        label_tree=LABEL_TREE.value,
    )


def export() -> None:
    """Writes a bundle."""
    checkpoint, out = required(CHECKPOINT), required(OUT)
    if BATCH.value != "any" and not BATCH.value.isdecimal():
        raise UsageError(f"--batch is {BATCH.value!r}; it must be a number of photos, or any")
    candidates(checkpoint)
    from mlic_jax.export import write

    write.export(
        checkpoint,
        Path(out),
        FORMATS.value,
        SIZE.value,
        None if BATCH.value == "any" else int(BATCH.value),
        PRECISION.value,
        IMAGES.value,
        LICENCE.value,
        ALLOW.value,
    )


def look_at_a_split() -> None:
    """The modes that need a checkpoint, and a recipe only where it names no data."""
    recipe, options = asked_of_config(CONFIG)
    if WORKDIR.value:
        check_workdir(Path(WORKDIR.value))
    candidates(run_or_checkpoint())
    from mlic_jax import checkpoint_config
    from mlic_jax.diagnose import doubt_run
    from mlic_jax.evaluate import calibrate, run
    from mlic_jax.runtime import compilation

    compilation.keep_programs()
    setup = checkpoint_config.set_up(CHECKPOINT.value, WORKDIR.value, recipe, options)
    check_config(setup.config)
    print(setup.said)
    arguments = setup.config, setup.workdir, setup.path
    if MODE.value == "diagnose":
        from mlic_jax.diagnose import run as diagnosis

        diagnosis.diagnose_run(*arguments)
    elif MODE.value == "calibrate":
        calibrate.calibrate_run(*arguments)
    elif MODE.value == "doubt":
        doubt_run.doubt_run(*arguments, SPLITS.value)
    elif MODE.value == "review":
        from mlic_jax.review import serve

        who = WHO.value or login()
        serve.review_run(setup.config, setup.path, who, HOST.value, PORT.value)
    else:
        run.evaluate_run(*arguments, PROFILE.value, setup.overrides)


def work_on_a_set() -> None:
    """The modes that need a recipe."""
    config = required(CONFIG)
    check_config(config)
    if MODE.value == "prepare":
        from mlic_jax.data import sources
        from mlic_jax.data.options import DataOptions

        for role, split in sources.open_splits(DataOptions.of(config.data)).items():
            print(f"{role}: {split.name} {split.split}, {len(split)} images in {split.directory}")
        return
    workdir = Path(required(WORKDIR))
    check_workdir(workdir)
    if config.init_from:
        candidates(config.init_from)
    from mlic_jax.runtime import compilation
    from mlic_jax.train.loop import train

    compilation.keep_programs()
    train(config, workdir, PROFILE.value, RECOVER.value, ALLOW_CHANGES.value)


def login() -> str:
    """The name of whoever runs this; raises UsageError where the machine knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of a container's user without a name
        raise UsageError("--who is missing: this machine has no name for you") from None


def check_workdir(workdir: Path) -> None:
    """Raises UsageError where there is a file in its way."""
    if file := next((path for path in (workdir, *workdir.parents) if path.is_file()), None):
        raise UsageError(f"--workdir {workdir}: {file} is a file; it must be a folder")


def run_or_checkpoint() -> str:
    """What --checkpoint or --workdir names; raises UsageError where both are missing."""
    if named := CHECKPOINT.value or WORKDIR.value:
        return named
    raise UsageError("--workdir is missing, and --checkpoint too: one of them names the run")


def help_text(argv: Sequence[str]) -> str:
    """What `--help` says: of the mode that a command line names, or of all."""
    named = re.search(rf"--?mode[= ]({'|'.join(MODES)})\b", " ".join(argv))
    modes = (named[1],) if named else tuple(MODES)
    program = argv[0] if called_mlic() else "python -m mlic_jax.main --mode MODE"
    lines = [f"usage: {program} --OPTION=VALUE ...", ""]
    lines += [f"  {mode:16} {MODES[mode]}" for mode in modes]
    groups = (*FLAGS_OF_MODES.items(), (("train", "evaluate"), OF_PROCESSES))
    for of_modes, known in groups:
        if shared := [mode for mode in of_modes if mode in modes]:
            lines += ["", *([] if named else [f"{', '.join(shared)}:"])]
            for flag in known:
                said = flags.FLAGS[flag.name].help.removeprefix(f"{', '.join(of_modes)}: ")
                lines.append(f"  --{flag.name:16} {said}")
    if modes[0] not in ("predict", "serve", "export"):
        lines += ["", "and every option of `mlic options`, as in --config.batch_size=32"]
    return "\n".join(lines)


def refuse_flags_of_other_modes() -> None:
    """Raises UsageError for a flag that the mode does not know."""
    for modes, known in FLAGS_OF_MODES.items():
        for flag in known:
            given = flag.value is not None if flag is CONFIG else flag.present  # options of it too
            if given and MODE.value not in modes:
                raise UsageError(f"--{flag.name} is for {', '.join(modes)}, not for {MODE.value}")


def read_flags(argv: list[str]) -> list[str]:
    """`parse_flags`; the modes that need no recipe take its options all the same.

    And says at once what has to be said before JAX starts its devices.
    """
    if {"--help", "-help", "-h", "--helpshort"} & set(argv):
        print(help_text(argv))
        raise SystemExit(0)
    rest = parse_flags(argv, config=CONFIG)
    refuse_flags_of_other_modes()
    if DETERMINISTIC.value:
        from mlic_jax.runtime import compilation

        compilation.make_deterministic()
    return rest


def run() -> None:
    """`main`, its errors as one line and an exit code; see `exit_code`."""
    show_log()
    hush_strays()
    code = exit_code(lambda: app.run(main, flags_parser=read_flags))
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
    os._exit(code)  # threads of a half-run pipeline must not keep the process alive


if __name__ == "__main__":
    run()
