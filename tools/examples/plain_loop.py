"""Use L2-SP in a plain PyTorch loop, ten lines with mtsp.regularizers: `python tools/examples/plain_loop.py`."""

import torch
from torch import nn

from mtsp.regularizers import L2SP


def main() -> dict[str, float]:
    """Fine-tune a small network; return its loss, penalty and distance from the anchors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))  # suppose "0" is pretrained and "2" new
    images, labels = torch.randn(64, 8), torch.randint(0, 3, (64,))

    anchors = {"0.weight": model.state_dict()["0.weight"]}  # L2SP copies the tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    regularizer = L2SP(model, anchors=anchors, alpha=0.1, beta=0.01)
    regularizer.attach(optimizer)
    for step in range(60):
        rows = slice(16 * (step % 4), 16 * (step % 4) + 16)
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # the pull acts here, once

    loss = nn.functional.cross_entropy(model(images), labels)
    return {"loss": loss.item(), "penalty": regularizer.penalty(), **regularizer.distances(["0"])}


if __name__ == "__main__":
    print(main())
