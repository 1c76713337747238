"""The door of `python -m mlic_jax.train`, which is `mlic train`."""

import sys

from mlic_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
