"""A training loop of one's own in plain PyTorch: nearfar gives the loss, its temperature and the large batch.

    python examples/own_training_loop.py

Two random views of 1,200 scanned digits, no labels; then the nearest of ten labelled digits a class names 597 others.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nearfar.losses import LearntTemperature, in_chunks, nt_xent

torch.manual_seed(0)
images, labels = (torch.as_tensor(load_digits()[key]) for key in ("images", "target"))
images = images.float()[:, None] / 16  # (1797, 1, 8, 8)
train, test = slice(0, 1200), slice(1200, None)

encoder = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64),
)  # fmt: skip
model = nn.Sequential(encoder, nn.ReLU(), nn.Linear(64, 32))  # what is used, and a projector for the loss
temperature = LearntTemperature(0.5, least=0.2)


def view(x: Tensor) -> Tensor:
    """Turned, sheared, resized and moved at random. (B, 1, 8, 8)"""
    affine = torch.eye(2, 3) + torch.randn(len(x), 2, 3) * torch.tensor([0.15, 0.15, 0.12])
    grid = nn.functional.affine_grid(affine, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False) + 0.05 * torch.randn_like(x)


@torch.no_grad()
def accuracy() -> float:
    """Of the nearest neighbour by cosine among ten labelled digits a class."""
    z = nn.functional.normalize(encoder(images), dim=1)  # (1797, 64)
    known = torch.cat([(labels[train] == c).nonzero()[:10, 0] for c in range(10)])  # (100,)
    nearest = known[(z[test] @ z[known].T).argmax(1)]  # (597,)
    return (labels[nearest] == labels[test]).float().mean().item()


before = accuracy()
optimiser = torch.optim.Adam([*model.parameters(), *temperature.parameters()], lr=2e-3)
for step in range(60):
    index = torch.randperm(1200)[:512]  # the group ids: two rows with the same index are views of one digit
    both = torch.cat([view(images[index]), view(images[index])])  # (1024, 1, 8, 8)
    z = in_chunks(model, both, 256)  # (1024, 32), with the activations of 256 rows at a time
    loss = nt_xent(z, index.repeat(2), temperature=temperature())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 20 == 0 or step == 59:
        print(f"step {step:2}  loss {loss.item():.3f}  temperature {temperature().item():.3f}")

after = accuracy()
print(f"nearest neighbour, ten labels a class: {before:.1%} before, {after:.1%} after")
assert after > before + 0.03
