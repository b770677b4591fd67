"""Class means: numbers worked out by hand, the file that is shared, and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtsp.transfer.centroids import Centroids, merge
from mtsp.transfer.features import extract
from mtsp.types import Batch, Kind

CLASSES = ("cat", "dog")


class Images:
    """Image i is of 2x2 pixels of the value i / 10, of class i % 2; those in `broken` cannot be read."""

    kind: Kind = "labeled"

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken, self.read = count, broken, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if index in self.broken:
            raise ValueError(f"{index}.jpg: truncated")
        self.read += 1
        return Batch(name=[str(index)], frame=torch.full((3, 2, 2), index / 10), label=torch.tensor(index % 2))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        return self[index]


def brightness(frames: Tensor) -> Tensor:
    """Mean and its square, BD with D = 2."""
    mean = frames.mean(dim=(1, 2, 3))
    return torch.stack([mean, mean * mean], dim=1)


def test_means_and_counts_of_each_class() -> None:
    """Images 0, .1, .2, .3, .4: class 0 has 0, .2, .4 (mean .2, mean square .2 / 3), class 1 has .1, .3 (.2, .05)."""
    found = extract(brightness, Images(5), CLASSES, "brightness", batch_size=2)
    np.testing.assert_allclose(found.means, [[0.2, 0.2 / 3], [0.2, 0.05]], rtol=1e-6)
    assert found.counts.tolist() == [3, 2]
    assert (found.names, found.features) == (CLASSES, "brightness")


def test_unreadable_images_are_left_out_only_if_asked() -> None:
    """Without image 0, class 0 has .2 alone."""
    skipped: list[str] = []
    found = extract(brightness, Images(4, broken=(0,)), CLASSES, "b", skipped=skipped.append)
    assert skipped == ["0.jpg: truncated"]
    assert found.counts.tolist() == [1, 2]
    assert found.means[0, 0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="none of 2 images could be read"):
        extract(brightness, Images(2, broken=(0, 1)), CLASSES, "b", skipped=skipped.append)


def test_features_that_are_not_a_finite_vector_each_are_refused() -> None:
    def poisoned(frames: Tensor) -> Tensor:
        return torch.where(frames.mean(dim=(1, 2, 3)) > 0.15, torch.nan, 1.0)[:, None]

    with pytest.raises(FloatingPointError, match="features of 2 are not finite"):
        extract(poisoned, Images(4), CLASSES, "b")
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2, 2\) for 4 images; expected one row per image"):
        extract(lambda frames: frames, Images(4), CLASSES, "b")
    with pytest.raises(ValueError, match="labels from 0 to 1 do not match 1 class names"):
        extract(brightness, Images(4), ("cat",), "b")


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(ValueError, match=r"1 of 3 classes have no images \(bird\); leave them out"):
        extract(brightness, Images(4), (*CLASSES, "bird"), "b")


def domain(names: str, counts: list[int], features: str = "f") -> Centroids:
    return Centroids(tuple(names), np.arange(2.0 * len(names)).reshape(-1, 2), np.array(counts), features)


def test_a_domain_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    domain("aé", [3, 7], "net é").save(tmp_path / "d.safetensors")
    found = Centroids.load(tmp_path / "d.safetensors")
    assert (found.names, found.features, found.counts.tolist()) == (("a", "é"), "net é", [3, 7])
    assert found.means.tolist() == [[0, 1], [2, 3]]


def test_small_classes_are_dropped_and_merged_domains_keep_their_names() -> None:
    assert domain("abc", [5, 1, 9]).at_least(5).names == ("a", "c")
    with pytest.raises(ValueError, match="none of 3 classes has 10 images or more; the largest has 9"):
        domain("abc", [5, 1, 9]).at_least(10)
    both = merge([("x", domain("ab", [1, 2])), ("y", domain("a", [3]))])
    assert (both.names, both.counts.tolist()) == (("x/a", "x/b", "y/a"), [1, 2, 3])
    with pytest.raises(ValueError, match=r"x and y cannot be compared: features of x are from f, features of y from g"):
        merge([("x", domain("a", [1])), ("y", domain("a", [1], "g"))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*, which should hold class means"),
        (b"rubbish", "cannot be read as class means"),
        (b"tensors", "its tensors are not class means"),
    ],
)
def test_a_file_that_is_no_domain_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    from safetensors.numpy import save

    path = tmp_path / "d.safetensors"
    if content is not None:
        path.write_bytes(save({"w": np.ones(2)}) if content == b"tensors" else content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Centroids.load(path)
