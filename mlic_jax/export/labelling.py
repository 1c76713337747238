"""What a bundle computes: uint8 pixels to calibrated probabilities, labels and regions.

Views, normalisation, temperature and thresholds are inside, so that nobody can forget them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from mlic_jax.config_checks import check_ranges, check_scales
from mlic_jax.errors import UsageError
from mlic_jax.names import require_size
from mlic_jax.predict.predictor import LookOptions, load_model, operating_point, tree_of
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.scoring import create_eval_model, eval_step_of
from mlic_jax.scores.views import host_size

Labelling = Callable[[UInt8[Array, "B S S 3"]], dict[str, Array]]

# What each output is, for people; axes as in docstrings: T regions, maps of h x w.
OUTPUTS = {
    "probabilities": "float32 [B, C], calibrated",
    "present": "bool [B, C], which labels reach their thresholds",
    "boxes": "int32 [B, T, 4], (y1, x1, y2, x2), upper bounds exclusive, of a square of so many "
    "pixels to a side as `grid` of `preprocessing` says",
    "box_classes": "int32 [B, T], whose region each is",
    "looked_at": "bool [B, T], of each region whether it was looked at",
    "global_probabilities": "float32 [B, C], of the whole photo alone",
    "local_probabilities": "float32 [B, C], of the regions alone",
    "class_maps": "float32 [B, T, h, w], where evidence for its class lies, in [0, 1]",
}


class Source:
    """A checkpoint as it is exported.

    Attributes:
        config: its configuration, with what was changed.
        options: what scoring takes of it.
        metadata: of the checkpoint.
        size: pixels of a side of the input.
        value_range: what is black and white of photos of more than 8 bits; None: there were none.
        temperature, thresholds, rule: of the operating point.
        labelling: the function; see `OUTPUTS`.
    """

    def __init__(self, checkpoint: str, dtype: str, size: int | None, **look: Any):
        """Reads it; `dtype` is of the products, `size` in the place of `data.image_size`.

        Raises:
            UsageError: `size` cannot be one; or see `load_model`.
            Failure: see `load_model`.
        """
        unknown = set(look) - set(LookOptions.__annotations__)
        assert not unknown, unknown
        self.config, self.variables, self.metadata = load_model(checkpoint, **look)
        with self.config.unlocked():
            self.config.model.dtype = dtype
            if size is not None:
                self.config.data.image_size = size
        check_ranges(self.config)  # and not its data: a converted model names none
        backbone, pixels = self.config.model.backbone, self.config.data.image_size
        option = "data.image_size" if size is None else "--size"
        require_size(f"{option} is {pixels}", pixels, backbone)
        check_scales(self.config.eval.scales, backbone)
        self.options = ScoreOptions.of(self.config)
        self.size = host_size(self.options)
        self.value_range = self.metadata.get("preprocessing", {}).get("range") or None
        self.temperature, self.thresholds, self.rule = operating_point(
            self.config.eval.protocol, self.metadata
        )
        self.class_names: tuple[str, ...] = tuple(self.metadata["class_names"])
        self.labelling = self._labelling()
        self._compiled = jax.jit(self.labelling)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What the model says of uint8 pixels `[B, S, S, 3]`, computed here."""
        return jax.device_get(self._compiled(pixels))

    def _labelling(self) -> Labelling:
        model = create_eval_model(self.options, len(self.class_names), self.variables)
        step = eval_step_of(model, self.options, class_maps=True)
        # A model takes JAX's arrays: what adds to one of NumPy in place adds with every trace.
        variables = {
            name: jax.tree.map(jnp.asarray, self.variables[name])
            for name in ("params", "batch_stats")
        }
        tree = tree_of(self.config, self.metadata)
        temperature = jnp.float32(self.temperature)
        thresholds = jnp.asarray(self.thresholds, jnp.float32)

        def labelling(pixels: UInt8[Array, "B S S 3"]) -> dict[str, Array]:
            said = step(variables, {"image": pixels})
            logits = said["logits"] if tree is None else tree.consistent(said["logits"])
            probabilities = jax.nn.sigmoid(logits / temperature)
            outputs = {"probabilities": probabilities, "present": probabilities >= thresholds[None]}
            for name in ("boxes", "box_classes", "looked_at", "class_maps"):
                if name in said:
                    outputs[name] = said[name]
            for look in ("global", "local"):
                if f"{look}_logits" in said:
                    outputs[f"{look}_probabilities"] = jax.nn.sigmoid(
                        said[f"{look}_logits"] / temperature
                    )
            return outputs

        return labelling


def example(source: Source, batch: int | None) -> jax.ShapeDtypeStruct:
    """The input of `labelling`: a batch of so many photos, None: of any number.

    Raises:
        UsageError: there cannot be so many.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"--batch is {batch}; it must be positive, or any")
    rows = batch if batch is not None else jax.export.symbolic_shape("batch")[0]
    return jax.ShapeDtypeStruct((rows, source.size, source.size, 3), jnp.uint8)
