"""Training a network by `cid.training` against the loop that torchvision's documentation teaches."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.common import row, side_by_side
from cid import models, training
from study.faces.dataset import read_faces

IMAGES, EPOCHS = 256, 2


class Photos(Dataset):
    """Images in memory, augmented one at a time as they are asked for."""

    def __init__(self, images: torch.Tensor, labels: np.ndarray):
        side = images.shape[-1]
        self.images, self.labels = images, torch.as_tensor(labels, dtype=torch.float32)
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(side, padding=round(training.SHIFT * side), padding_mode="edge"),
                v2.ToDtype(torch.float32),
                v2.Normalize(
                    models.PIXEL_MEAN.flatten().tolist(), models.PIXEL_SPREAD.flatten().tolist()
                ),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        return self.transform(self.images[row]), self.labels[row]


def plain(model: str, images: torch.Tensor, labels: np.ndarray) -> None:
    """The same network, optimiser, batches and augmentation, in the usual way."""
    spec = models.get_model(model)
    body, width = spec.build(None)
    net = torch.nn.Sequential(body, torch.nn.Linear(width, 1)).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    loader = DataLoader(Photos(images, labels), batch_size=64, shuffle=True)
    for _ in range(EPOCHS):
        for batch, target in loader:
            logits = net(batch).flatten()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def measure(rounds: int) -> list[dict]:
    found = []
    photos = list(islice(read_faces("data", check_images=False).images(), IMAGES))
    labels = np.arange(IMAGES) % 2
    for model in ("cnn", "resnet18"):
        side = models.get_model(model).side
        images = v2.functional.resize(
            torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2), [side, side]
        )
        options = models.read_options(model, {"epochs": EPOCHS, "jtt_epochs": 1, "pretrained": "none"})  # fmt: skip
        times = side_by_side(
            lambda model=model, images=images, options=options: training.fit(
                model, images, labels, np.arange(IMAGES), options=options
            ),
            {
                "torchvision, a plain loop": lambda model=model, images=images: plain(
                    model, images, labels
                )
            },
            rounds,
            warm=False,
        )
        rate = IMAGES * EPOCHS / times["ours"]
        case = f"{model}, {side} px, batches of 64 ({rate:,.0f} images a second)"
        found.append(row("networks", case, "torchvision, a plain loop", times))
    return found
