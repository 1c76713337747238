"""The door of `python scripts/build_word_vectors.py`, which is `mlic build-word-vectors`."""

import sys

from mlic_jax.prepare.word_vectors import main

if __name__ == "__main__":
    sys.exit(main())
