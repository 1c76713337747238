"""The door of `python -m mlic_jax.evaluate`, which is `mlic evaluate`."""

import sys

from mlic_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
