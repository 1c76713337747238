"""The door of `python -m mlic_jax.voc_server`; the room is `evaluate/voc_server.py`."""

import sys

from mlic_jax.evaluate.voc_server import main

if __name__ == "__main__":
    sys.exit(main())
