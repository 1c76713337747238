# %% [markdown]
# # Fine-tune on your own photos
# Photos lie in a folder of each class, in folders of the splits: `own/train/star/1.jpg`. Training
# starts from the backbone of another run; published weights, once converted, go the same way.

# %%
from pathlib import Path

import numpy as np
from tiny import tiny_recipe

from mlic_jax.data.scenes import CLASS_NAMES, render
from mlic_jax.evaluate import evaluate_run
from mlic_jax.predict import Predictor
from mlic_jax.train import train

run, own = Path("runs/notebook"), Path("own")
if not (run / "metrics_test.json").exists():
    train(tiny_recipe(), run)

# %% [markdown]
# The photos, here generated: the class of each is the shape of an object in it.

# %%
for split, count in {"train": 48, "val": 16, "test": 16}.items():
    for i in range(count):
        scene = render(7, split, i)
        shape = CLASS_NAMES[int(np.flatnonzero(scene.labels > 0)[0])].split()[1]
        (own / split / shape).mkdir(parents=True, exist_ok=True)
        (own / split / shape / f"{i}.jpg").write_bytes(scene.image)

# %% [markdown]
# A recipe is a configuration, of which any option can be set.

# %%
config = tiny_recipe()
config.data.source = "folders"
config.data.name = "notebook_own"
config.data.root = str(own)
config.init_from = str(run)
train(config, "runs/own")

# %% [markdown]
# Training evaluates the best checkpoint at its end. So it is done again, here with the mirrored
# photos too.

# %%
config.eval.flip = True
metrics = evaluate_run(config, "runs/own")
print(f"mAP {metrics['mAP']:.1f}, chance {metrics['chance']:.1f}")
print(Predictor.from_checkpoint("runs/own")(sorted(own.glob("test/*/*.jpg"))[0], top=1))
