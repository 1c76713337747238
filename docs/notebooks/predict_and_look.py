# %% [markdown]
# # Predict and look
# A trained model looks at a photo: its labels, their probabilities, and the regions that it looked
# at a second time. Here the model is one that trains within seconds; put the folder of your own
# run, or of a converted model, in the place of `runs/notebook`.

# %%
from pathlib import Path

from tiny import tiny_recipe

from mlic_jax.data.scenes import render
from mlic_jax.predict import Predictor
from mlic_jax.train import train

run = Path("runs/notebook")
if not (run / "metrics_test.json").exists():
    train(tiny_recipe(), run)

# %% [markdown]
# Two photos that it has not seen.

# %%
folder = Path("photos")
folder.mkdir(exist_ok=True)
for i in range(2):
    (folder / f"{i}.jpg").write_bytes(render(5, "test", i).image)

# %% [markdown]
# One photo gives one prediction, whatever it is given as: a path, an address, bytes, a PIL image or
# an array.

# %%
predictor = Predictor.from_checkpoint(run)
print(predictor)
prediction = predictor(folder / "0.jpg", top=3)
print(prediction)
for region in prediction.regions:
    print(region)

# %% [markdown]
# Several give a list. A label counts as present from its threshold on, which can be another for
# all labels or for some.

# %%
paths = sorted(folder.glob("*.jpg"))
for said in predictor(paths, threshold=0.3):
    print(said)
few = predictor(paths, threshold={"red star": 0.9})
print([len(said.labels) for said in few])

# %% [markdown]
# The photo with what was found in it; a notebook shows an image that ends a cell.

# %%
image = predictor.annotated(folder / "0.jpg", prediction)
image.save("annotated.png")
image
