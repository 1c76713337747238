"""The door of `python -m mlic_jax.calibrate`, which is `mlic calibrate`."""

import sys

from mlic_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["calibrate", *sys.argv[1:]]))
