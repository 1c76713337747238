"""The door of `python -m mlic_jax.voc_server`, which is `mlic voc-server`."""

import sys

from mlic_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["voc-server", *sys.argv[1:]]))
