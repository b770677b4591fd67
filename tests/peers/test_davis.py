"""The DAVIS 2017 evaluation in its official formulation (semi-supervised), written anew with OpenCV.

For each object of the first true mask: J and F of every frame but the first and the last, their mean, recall and decay;
the totals are means over the objects of all sequences. A boundary pixel matches within a disk of 0.8 % of the diagonal,
by a dilation; pixels that are void in the true mask are background in both.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.files.images import write_image
from data.files.masks import write_mask
from tests.data.flow.files import made
from tools.score import main

SIZE = (48, 86)
STATISTICS = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")


def boundary(mask: np.ndarray) -> np.ndarray:
    """Return whether each pixel differs from its right, lower or lower right neighbor; the last ones are repeated."""
    east, south, both = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1], south[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ both)
    edge[-1], edge[:, -1], edge[-1, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1], 0
    return edge


def region_and_boundary(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    either = (ours | theirs).sum()
    region = (ours & theirs).sum() / either if either else 1.0
    radius = math.ceil(0.008 * math.hypot(*SIZE))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    edge, other = boundary(ours), boundary(theirs)
    near_other, near_edge = (cv2.dilate(one.astype(np.uint8), disk) > 0 for one in (other, edge))
    if not edge.any() or not other.any():
        return region, float(edge.any() == other.any())
    precision, recall = (edge & near_other).sum() / edge.sum(), (other & near_edge).sum() / other.sum()
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: list[float]) -> list[float]:
    ends = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    quarters = [np.mean(values[start : stop + 1]) for start, stop in pairwise(ends)]
    return [float(np.mean(values)), float(np.mean(np.array(values) > 0.5)), float(quarters[0] - quarters[3])]


def official(truths: dict[str, list[np.ndarray]], found: dict[str, list[np.ndarray]]) -> dict[str, list[float]]:
    table = {}
    for name, masks in truths.items():
        for number in range(1, int(masks[0][masks[0] < 255].max()) + 1):
            pairs = []
            for truth, predicted in zip(masks[1:-1], found[name][1:-1], strict=True):
                clean = np.where(truth == 255, 0, predicted)
                pairs.append(region_and_boundary(clean == number, truth == number))
            region, edge = zip(*pairs, strict=True)
            table[f"{name}_{number}"] = [*statistics(list(region)), *statistics(list(edge))]
    return table


def blobs(rng: np.random.Generator, objects: int, frames: int, jitter: float) -> list[np.ndarray]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centers, speeds = rng.uniform(8, 40, (objects, 2)) * (1, 1.8), rng.normal(0, 2, (objects, 2))
    sizes = rng.uniform(4, 12, (objects, 2))
    masks = []
    for t in range(frames):
        mask = np.zeros(SIZE, np.uint8)
        for i in range(objects):
            (cy, cx), (h, w) = centers[i] + t * speeds[i] + rng.normal(0, jitter, 2), sizes[i]
            mask[((y - cy) / h) ** 2 + ((x - cx) / w) ** 2 < 1 + rng.normal(0, jitter / 10)] = i + 1
        masks.append(mask)
    for i in range(objects):  # each is in the first frame
        masks[0][0, 3 * i : 3 * i + 3] = i + 1
    return masks


@pytest.mark.parametrize("seed", range(4))
def test_the_program_gives_the_official_numbers(tmp_path: Path, seed: int) -> None:
    """Four times 150 object-frames or so, with objects that leave, overlap and are missed, and void pixels."""
    rng = np.random.default_rng(seed)
    truths, found = {}, {}
    for name in ("bear", "dogs", "train"):
        objects, frames = int(rng.integers(1, 6)), int(rng.integers(6, 22))
        state = rng.bit_generator.state
        truths[name] = blobs(rng, objects, frames, 0.5)
        rng.bit_generator.state = state
        found[name] = blobs(rng, objects, frames, 1.5)
        found[name][3][:] = 0
        for mask in truths[name][1:]:
            mask[rng.random(SIZE) < 0.01] = 255
        for i in range(frames):
            write_image(made(tmp_path / f"DAVIS/JPEGImages/480p/{name}/{i:05d}.jpg"), np.zeros((*SIZE, 3), np.uint8))
            write_mask(made(tmp_path / f"DAVIS/Annotations/480p/{name}/{i:05d}.png"), truths[name][i])
            write_mask(made(tmp_path / f"found/{name}/{i:05d}.png"), found[name][i])
    made(tmp_path / "DAVIS/ImageSets/2017/val.txt").write_text("\n".join(truths))
    arguments = ["--dataset", "davis", "--root", str(tmp_path / "DAVIS"), "--predictions", str(tmp_path / "found")]
    assert main([*arguments, "--objects", "--json", str(tmp_path / "scores.json")]) == 0
    ours = json.loads((tmp_path / "scores.json").read_text())
    expected = official(truths, found)
    assert set(ours["per_object"]) == set(expected)
    for name, row in expected.items():
        assert [ours["per_object"][name][key] for key in STATISTICS] == pytest.approx(row, rel=1e-12, abs=1e-12)
    means = np.mean([*expected.values()], axis=0)
    assert [ours[key] for key in STATISTICS] == pytest.approx(means.tolist(), rel=1e-12, abs=1e-12)
