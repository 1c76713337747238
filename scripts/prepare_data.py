"""The door of `python scripts/prepare_data.py`, which is `mlic prepare`."""

import sys

from mlic_jax.prepare.own_data import main

if __name__ == "__main__":
    sys.exit(main())
