# %% [markdown]
# # Compare two runs
# Two models on the same images: is one better, or were the images kind to it? Both runs wrote the
# scores of the test split, `scores_test.npz`, of which everything here is made.

# %%
import json
from pathlib import Path

from tiny import tiny_recipe

from mlic_jax.metrics.significance import compare
from mlic_jax.scores.files import Scores
from mlic_jax.train import train

mcar, pooled = Path("runs/notebook"), Path("runs/pooled")
if not (mcar / "metrics_test.json").exists():
    train(tiny_recipe(), mcar)
config = tiny_recipe()
config.model.name = "pooled"  # the baseline: the same backbone, no second look
if not (pooled / "metrics_test.json").exists():
    train(config, pooled)

# %% [markdown]
# The figures that each run wrote.

# %%
for run in (mcar, pooled):
    metrics = json.loads((run / "metrics_test.json").read_text())
    print(f"{run}: mAP {metrics['mAP']:.1f}, OF1 {metrics['OF1']:.1f}")

# %% [markdown]
# The difference on resampled test images, the same for both: its interval and how likely it is that
# chance alone makes as much.

# %%
first, second = (Scores.load(run / "scores_test.npz") for run in (mcar, pooled))
found = compare(first.logits, second.logits, first.labels, resamples=200)
low, high = found["interval"]
print(f"mAP {found['difference']:+.1f}, 95% of resamples {low:+.1f} to {high:+.1f}")
print(f"p = {found['p_value']:.2f}")
