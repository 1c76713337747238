"""Prediction with a bundle: `--mode predict --runtime NAME`, with the files of a checkpoint's."""

import json
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from mlic_jax.data.fitting import Fit
from mlic_jax.errors import UsageError
from mlic_jax.export import bundle
from mlic_jax.predict.files import Opened
from mlic_jax.predict.predictor import LookOptions, Predictor

MOST = 8  # photos together, where a bundle takes any number


class BundlePredictor(Predictor):
    """A bundle in a runtime; it has no `config` and no `options`."""

    def __init__(
        self, description: dict[str, Any], runtime: str, model: bundle.Runtime, batch_size: int
    ):
        """Takes what `bundle.read` and `bundle.open_runtime` give."""
        how, point, of = (description[k] for k in ("preprocessing", "operating_point", "model"))
        self.class_names = tuple(description["class_names"])
        self.fit = Fit(how["interpolation"], how["center_crop"])
        self.size, self.grid, self.batch_size = how["size"], how["grid"], batch_size
        self.temperature, self.rule = point["temperature"], point["rule"]
        # As in the graph: of float32, at which a probability is as large.
        thresholds = [point["thresholds"][name] for name in self.class_names]
        self.thresholds = np.array(thresholds, np.float32).astype(np.float64)
        self.about = {
            "model": f"{of['name']} on {of['backbone']}, in {runtime}",
            "image size": f"{self.size} px{self.fit.described()}",
        }
        self._see_range(how["range"])
        self._model, self._batch = model, bundle.batch_of(description)

    def _look(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = bundle.run_in_batches(self._model, pixels, self._batch)
        return {
            name: of.astype(np.float64) if name.endswith("probabilities") else of
            for name, of in outputs.items()
        }


def open_bundle(folder: str | Path, runtime: str, **look: Unpack[LookOptions]) -> Opened:
    """A bundle, for `predict_files`.

    Raises:
        UsageError: there is none, it is not for that runtime, or `look` asks for anything: that is
            in the model.
        Failure: it is not as it was written, or the runtime does not read it.
    """
    if asked := [name for name, value in look.items() if value is not None]:
        raise UsageError(
            f"--{asked[0]} is for a checkpoint: a bundle looks as it was exported; leave it, or "
            "give a run without --runtime"
        )
    folder = Path(folder)
    description = bundle.read(folder)
    meant = description.get("runtimes", bundle.RUNTIMES)
    if runtime not in meant:
        raise UsageError(f"{folder} is for {', '.join(meant)}, and not for {runtime}")
    model = bundle.open_runtime(folder, description, runtime)
    hashes = json.loads((folder / bundle.HASHES).read_text())
    path = description["formats"][bundle.RUNTIMES[runtime]]
    return Opened(
        run={
            "weights": hashes[path],
            "metadata": hashes[bundle.DESCRIPTION],
            "runtime": runtime,
        },
        most=bundle.batch_of(description) or MOST,
        predictor=lambda batch_size: BundlePredictor(description, runtime, model, batch_size),
    )
