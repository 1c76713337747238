"""The policies, on NumPy and on JAX arrays alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.errors import UsageError


@pytest.mark.parametrize("array", [np.array, jnp.array])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [("as_positive", [1, 1, -1]), ("as_negative", [1, -1, -1]), ("ignore", [1, 0, -1])],
)
def test_policies(array, policy, expected):
    resolved = resolve_unknown(array([1, 0, -1], dtype=np.int8), policy)
    np.testing.assert_array_equal(resolved, expected)
    assert resolved.dtype == np.int8


def test_an_unknown_policy():
    with pytest.raises(UsageError, match="label policy is 'maybe'; known are as_positive"):
        resolve_unknown(np.zeros(1, np.int8), "maybe")
