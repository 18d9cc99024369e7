"""What a method may ask of its views: small crops after the large ones, and the map of each into its image."""

import numpy as np
import pytest
import torch
from torch import nn

from nearfar import build
from nearfar.data import open_source
from nearfar.learning import Hooks, learn
from nearfar.methods.parts import Step
from nearfar.recipe import Recipe
from nearfar.views.geometry import places

X = np.random.default_rng(0).integers(0, 256, (64, 24, 24, 3), dtype=np.uint8)


class Asking(nn.Module):
    """Learns nothing; keeps what it was given."""

    views = 2

    def __init__(self, **asks):
        super().__init__()
        self.weight, self.given, self.encoder = nn.Parameter(torch.ones(())), [], nn.Identity()
        for name, value in asks.items():
            setattr(self, name, value)

    def forward(self, views, index, labels, progress):
        self.given.append((views, index))
        z = torch.randn(2 * len(index), 8)
        return Step((self.weight * z).mean(), z, z, index.repeat(2))

    def after_step(self, progress):
        pass


def given(policy, **asks):
    source = open_source(X).train
    recipe = build.resolve(Recipe(source="array", policy=policy, batch=16, steps=3, precision="32-true"), source)
    method = Asking(**asks)
    learn(source, recipe, method, Hooks(show=False))
    return method.given


def test_small_crops_come_after_the_large_views_where_they_are_wanted():
    views, _ = given("swav-small", small_views=True)[0]
    assert [tuple(v.shape) for v in views] == [(16, 3, 24, 24)] * 2 + [(16, 3, 12, 12)] * 4
    assert [tuple(v.shape) for v in given("swav-small")[0][0]] == [(16, 3, 24, 24)] * 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_dense_method_gets_the_maps_of_the_pixels_it_gets(precision):
    """A view's pixel, looked up in the image through its map, is that pixel (colour off, so that they are equal)."""
    source = open_source(X).train
    recipe = build.resolve(
        Recipe(source="array", policy="simclr-small", views={"colour": 0.0, "grey": 0.0}, batch=16, steps=2,
               precision=precision), source)  # fmt: skip
    method = Asking(wants_maps=True)
    learn(source, recipe, method, Hooks(show=False))
    for views, index in method.given:
        planes = torch.from_numpy(X[index.numpy()]).permute(0, 3, 1, 2) / 255
        for view in views:
            at = places(view.to_image, (24, 24), (24, 24)) / 24 * 2 - 1
            looked_up = nn.functional.grid_sample(planes, at, align_corners=False, padding_mode="border")
            atol = 1e-4 if precision == "32-true" else 0.02  # of the views' products
            torch.testing.assert_close(looked_up, view.pixels, atol=atol, rtol=0)


def test_views_of_ones_own_take_the_policys_place():
    source = open_source(X).train
    recipe = build.resolve(Recipe(source="array", batch=16, steps=2), source)
    asked = []

    def own(content, generator, device):
        asked.append(content.shape)
        return [torch.zeros(len(content), 3, 8, 8), torch.ones(len(content), 3, 8, 8)]

    method = Asking()
    learn(source, recipe, method, Hooks(show=False), views=own)
    assert asked == [(16, 24, 24, 3)] * 2
    assert float(method.given[0][0][1].mean()) == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_recipes_precision_decides_the_products(precision):
    source = open_source(X).train
    recipe = build.resolve(Recipe(source="array", batch=16, steps=1, precision=precision), source)
    views = build.image_views(recipe, build.Input((24, 24, 3), 0.0, 255.0), 2)
    assert views.dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
