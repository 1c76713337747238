"""The door of `python scripts/build_label_graph.py`, which is `mlic build-label-graph`."""

import sys

from mlic_jax.prepare.label_graph import main

if __name__ == "__main__":
    sys.exit(main())
