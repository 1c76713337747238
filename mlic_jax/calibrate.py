"""The door of `python -m mlic_jax.calibrate`; the room is `evaluate/calibrate.py`."""

import sys

from mlic_jax.evaluate.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
