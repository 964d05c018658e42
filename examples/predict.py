"""Trains on a table with texts and gaps, saves the model, and predicts new rows with it.

The same without code: fastopt train --data flats.csv, then fastopt predict fastopt-run new.csv

Needs the training tools: pip install '.[train]'. Run it with: python examples/predict.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastopt import train

# A table as a spreadsheet writes it: semicolons, decimal commas, a text column, gaps.
rng = np.random.default_rng(0)
size = rng.uniform(30, 150, 800)
town = rng.choice(["Oslo", "Rome", "Porto"], 800)
rent = 8 * size + 150 * (town == "Oslo") + 60 * (town == "Rome") + rng.normal(0, 20, 800)
table = pd.DataFrame({"size": size.round(1), "town": town, "rent": rent.round(2)})
table.loc[::40, "size"] = None
table.to_csv("flats.csv", sep=";", decimal=",", index=False)

data = train.load_data("flats.csv")
print(data)
for note in data.notes:
    print("-", note)

config = train.RunConfig(task=data.task, hidden=(32,), dropout=0.0, lr=0.01, epochs=60)
trainer = config.build(data)
trainer.fit(config.epochs)
train.save_model("flats.safetensors", trainer)

# Later, in another program. The columns are found by name; a gap is filled as in training.
model = train.load_model("flats.safetensors")
new = pd.DataFrame({"town": ["Oslo", "Rome", "Porto"], "size": [100, 50, None]})
predicted = model.predict(new)
for row, value in zip(new.itertuples(), predicted, strict=True):
    print(f"{row.town:5}  {row.size:5.0f} m2  rent {value:.0f}")
assert np.allclose(predicted[:2], [950, 460], atol=40)
