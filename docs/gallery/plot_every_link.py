"""
What each link does to a gradient
=================================

One gradient of six rows, and what every gradient link makes of it in the first step. Blue is below
zero, red above; each picture has its own scale.
"""

# %%
# The links are those that the package exports; the values are those of its tests.
import math

import pictures
from matplotlib.pyplot import figure

links = [n for n in pictures.drawn() if pictures.laws().make(n).phase == "gradient"]
gradient = pictures.sample()
columns = 4
rows = math.ceil((len(links) + 1) / columns)
shown = figure(figsize=(11, 1.3 * rows), layout="constrained")
axes = shown.subplots(rows, columns).flat
pictures.image(next(axes), gradient, "the gradient")
for name in links:
    tx = pictures.laws().make(name)
    given, params = pictures.asked(tx, gradient), pictures.parameters(tx)
    new, _ = tx.update(gradient, tx.init(params), params=params, **given)
    pictures.image(next(axes), new, name, fontsize=8)
for ax in axes:
    ax.axis("off")
