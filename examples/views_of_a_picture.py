"""Augmented views in plain PyTorch, and what follows them: a box, a mask, and which pixels of two views are the same.

    python examples/views_of_a_picture.py
"""

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from nearfar.views import geometry
from nearfar.views.image import ImageViews
from nearfar.views.policies import named
from nearfar.views.policy import lay_out

pictures = np.stack([picture[100:356, 200:456] for picture in load_sample_images().images])  # (2, 256, 256, 3) uint8
plan = lay_out(named("dino", rotate=15.0), 2, small=True)  # DINO's policy, turned a little: 2 large views and 8 small
views = ImageViews(plan, (256, 256), low=0, high=255)
seen = views.seen(pictures, torch.Generator().manual_seed(0))

for view in (*seen[:2], seen[2]):
    print(tuple(view.pixels.shape), view.drawn.describe(0))

box = torch.tensor([[[96.0, 96.0, 160.0, 160.0]]]).expand(2, -1, -1)  # x0, y0, x1, y1 in each picture
where, share = geometry.follow_boxes(box, seen[0].to_image, (256, 256))
print("box", where[0, 0].round().tolist(), f"of which {share[0, 0]:.0%} is seen")

mask = torch.zeros(2, 256, 256, dtype=torch.long)
mask[:, 96:160, 96:160] = 1
print("mask", geometry.follow_mask(mask, seen[0].to_image, (256, 256))[0].float().mean().item() > 0)

# cells of a 7×7 map of two views that show the same place, as dense methods contrast them
a, b = (geometry.places(view.to_image, (256, 256), (7, 7)).flatten(1, 2) for view in seen[:2])  # (2, 49, 2)
print("cells that correspond", int((torch.cdist(a, b).amin(2) < 16).sum()), "of", 2 * 49)
