"""The two ways a command ends badly; `main` turns each into one line and an exit code."""


class UsageError(ValueError):
    """The request is wrong: an unknown option, a missing path, a wrong value. Exit code 2."""


class Failure(RuntimeError):
    """The request is fine but cannot be carried out: bad data, a diverged run. Exit code 1."""
