"""The door of `python -m mlic_jax.predict`, which is `mlic predict`."""

import sys

from mlic_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["predict", *sys.argv[1:]]))
