"""The front door: `python -m mlic_jax.main --config configs/mcar_scenes.py --workdir runs/scenes`.

Flags and dispatch alone. Any option of the configuration can be set on the command line, as in
`--config.batch_size=32`; `mlic_jax/config.py` lists them all.
"""

import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from mlic_jax.command_line import exit_code, parse_flags
from mlic_jax.errors import UsageError

MODES = ("train", "evaluate", "prepare")
CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The recipe, FILE or FILE:variant as in configs/mcar_coco.py:resnet50,448"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's checkpoints and results go.")
MODE = flags.DEFINE_enum(
    "mode", "train", MODES, "train (and resume), evaluate the best checkpoint, or prepare the data."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "evaluate: a run or a converted checkpoint, where not the run in --workdir."
)


def main(argv: list[str]) -> None:
    """Runs the mode; raises UsageError or Failure."""
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; options are --name=value")
    if CONFIG.value is None:
        raise UsageError("--config is missing, for example --config configs/mcar_scenes.py")
    # Imported here, so that --help and a wrong flag answer at once.
    from mlic_jax import evaluate, train
    from mlic_jax.config import check_config
    from mlic_jax.data import sources

    absl_logging.set_verbosity(absl_logging.WARNING)  # what libraries say of every step of theirs
    config = CONFIG.value
    try:
        check_config(config)
    except OSError as error:  # ml_collections says of a missing recipe only now
        raise UsageError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from None
    if MODE.value == "prepare":
        sources.open_splits(config.data)
        return
    if WORKDIR.value is None:
        raise UsageError("--workdir is missing, for example --workdir runs/scenes")
    if MODE.value == "evaluate":
        evaluate.evaluate_run(config, Path(WORKDIR.value), CHECKPOINT.value)
    else:
        train.train(config, Path(WORKDIR.value))


def run() -> None:
    """`main`, its errors as one line and an exit code: 2 for a wrong request, 1 for a failure."""
    logger = logging.getLogger("mlic_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    code = exit_code(lambda: app.run(main, flags_parser=parse_flags))
    sys.stdout.flush()
    os._exit(code)  # threads of a half-run pipeline must not keep the process alive


if __name__ == "__main__":
    run()
