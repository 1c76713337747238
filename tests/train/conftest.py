"""What tests of training share."""

import contextlib
import signal

import pytest


@pytest.fixture
def asked_to_stop(monkeypatch):
    """A context in which every validation of a run ends with a request to stop, a signal."""
    from mlic_jax.train.loop import validate_step

    @contextlib.contextmanager
    def context(request=signal.SIGTERM):
        def validate_and_ask(*arguments):
            validate_step(*arguments)
            signal.raise_signal(request)

        with monkeypatch.context() as patch:
            patch.setattr("mlic_jax.train.loop.validate_step", validate_and_ask)
            yield

    return context
