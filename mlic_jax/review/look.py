"""What a model says of a photo that is shown, and where it sees a class."""

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mlic_jax.errors import Failure
from mlic_jax.predict.predictor import Predictor, load_model
from mlic_jax.scores.predictions import Prediction

REMEMBERED = 64  # photos


class Seen(NamedTuple):
    """A class in a photo, by a model that may have been trained on it.

    Attributes:
        probability: that it is there.
        box: (y1, x1, y2, x2) in pixels of the photo; None: the model looks nowhere for it.
    """

    probability: float
    box: tuple[int, int, int, int] | None


class Look:
    """A model that is asked about photos by their number; those of lately are remembered."""

    def __init__(self, checkpoint: Path):
        """Raises UsageError, Failure: see `Predictor.from_checkpoint`."""
        config, variables, metadata = load_model(checkpoint)
        if config.model.name != "mcar":  # whose every region costs another look
            config.eval.top_n = len(metadata["class_names"])
        self.predictor = Predictor(config, variables, metadata)
        self._known: OrderedDict[int, Prediction] = OrderedDict()

    def __call__(self, row: int, photo: Image.Image, class_name: str) -> Seen:
        """What it says of a class in a photo, which is RGB and upright.

        Raises:
            Failure: the scores are not finite.
        """
        if row not in self._known:
            (prediction,) = self.predictor.stream([np.asarray(photo)])
            if prediction.error:
                raise Failure(prediction.error)
            self._known[row] = prediction
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        prediction = self._known[row]
        boxes = [region.box for region in prediction.regions if region.class_name == class_name]
        return Seen(prediction.scores[class_name], boxes[0] if boxes else None)
