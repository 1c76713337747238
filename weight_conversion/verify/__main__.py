"""`python -m weight_conversion.verify`, see `command.main`."""

import sys

from weight_conversion.verify.command import main

sys.exit(main())
