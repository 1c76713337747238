"""The door of `python -m mlic_jax.bundle`, which is `mlic bundle`."""

import sys

from mlic_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["bundle", *sys.argv[1:]]))
