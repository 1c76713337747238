"""The probe that every head has to beat: ridge regression on the mean features of whole images.

Of the plain view alone, with the labels of training as +1 and -1; unknown ones are left out. Its
penalty is chosen on `val`, by mAP, and the test split is scored once.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import Ridge

from mlic_jax.data import sources
from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import compute_metrics, write_results
from mlic_jax.models import create_model
from mlic_jax.runtime import devices
from mlic_jax.scores.files import Scores
from mlic_jax.scores.stored import open_plain_store
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables, start_weights

PENALTIES = tuple(10.0**k for k in range(-2, 5))  # of standardised features


def fit(config: ConfigDict, folder: Path) -> float:
    """Writes scores and metrics of the test split into `folder`; gives the mAP on `val`.

    Raises:
        UsageError: features are not stored.
    """
    options, mesh = TrainOptions.of(config), devices.create_mesh()
    if not options.features.store:
        raise UsageError("ridge is of stored features: say --config.features.store=True")
    splits = sources.open_to_train(options.data)
    names = list(splits["train"].class_names)
    model = create_model(options.model, len(names))
    fit = getattr(model.features, "fit", None)
    start = start_weights(initial_variables(model, options), options, names, fit)

    def features(split: Split) -> np.ndarray:
        store = open_plain_store(model, start, split, options, mesh)
        rows = np.arange(len(split))[:, None]
        maps = (store.read(("maps",), np.zeros(1, int), row)["maps"] for row in rows)
        return np.concatenate([each.mean(axis=(1, 2), dtype=np.float64) for each in maps])

    of_train = features(splits["train"])
    mean, deviation = of_train.mean(axis=0), of_train.std(axis=0) + 1e-6
    of_train = (of_train - mean) / deviation
    labels = resolve_unknown(splits["train"].labels(), options.loss.label_policy)

    rows_of = {role: (features(splits[role]) - mean) / deviation for role in ("val", "test")}

    def scores_of(role: str, penalty: float) -> Scores:
        split, rows = splits[role], rows_of[role]
        logits = [_predict(of_train, of_class, penalty, rows) for of_class in labels.T]
        return Scores(
            logits=np.stack(logits, axis=1).astype(np.float32),
            labels=split.labels(),
            image_ids=np.array([split.image_id(i) for i in range(len(split))]),
            class_names=np.array(names),
            set_name=split.name,
            split=split.split,
            image_size=options.data.image_size,
        )

    def worth(penalty: float) -> float:
        return compute_metrics(scores_of("val", penalty), options.eval)["mAP"]

    on_val = {penalty: worth(penalty) for penalty in PENALTIES}
    best = max(on_val, key=on_val.__getitem__)
    scores = scores_of("test", best)
    values: dict[str, Any] = compute_metrics(scores, options.eval)
    values |= {"checkpoint": f"ridge, penalty {best:g}", "overrides": {}}
    write_results(scores, values, splits["test"], options, {}, folder, folder / "metrics.jsonl")
    return on_val[best]


def _predict(
    features: np.ndarray, labels: np.ndarray, penalty: float, rows: np.ndarray
) -> np.ndarray:
    known = labels != 0
    return Ridge(penalty).fit(features[known], labels[known]).predict(rows)
