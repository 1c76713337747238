"""`python -m mlic_jax.evaluate`: the metrics of a score file, see `run.main`."""

import sys

from mlic_jax.evaluate.run import main

sys.exit(main())
