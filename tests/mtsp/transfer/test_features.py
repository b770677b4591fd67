"""Class means: their numbers by hand, going on after a stop, the file that is shared, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtsp.transfer import Centroids, extract, joined
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


def stopping_after(batches: int) -> Callable[[], bool]:
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= batches


def test_means_and_counts_of_each_class() -> None:
    """Images 0, .1, .2, .3, .4: class 0 has 0, .2, .4 (mean .2, mean square .2 / 3), class 1 has .1, .3 (.2, .05)."""
    found = extract(brightness, Images(5), CLASSES, "brightness", batch_size=2)
    np.testing.assert_allclose(found.means, [[0.2, 0.2 / 3], [0.2, 0.05]], rtol=1e-6)
    assert found.counts.tolist() == [3, 2]
    assert (found.names, found.features) == (CLASSES, "brightness")


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    partial = tmp_path / "sums.safetensors"
    whole = extract(brightness, Images(23), CLASSES, "b", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        extract(brightness, Images(23), CLASSES, "b", batch_size=4, partial=partial, stop=stopping_after(3))
    assert partial.is_file()
    rest, seen = Images(23), []
    found = extract(brightness, rest, CLASSES, "b", batch_size=4, partial=partial, progress=seen.append)
    assert rest.read == 23 - 12  # three batches of four were done
    assert (seen[0], seen[-1]) == (12, 23)
    assert found.means.tobytes() == whole.means.tobytes()
    assert not partial.exists()


def test_sums_are_kept_from_time_to_time_and_on_an_error(tmp_path: Path) -> None:
    partial = tmp_path / "sums.safetensors"
    with pytest.raises(ValueError, match=r"^9.jpg: truncated$"):
        extract(brightness, Images(12, broken=(9,)), CLASSES, "b", batch_size=4, partial=partial)
    mended = Images(12)
    extract(brightness, mended, CLASSES, "b", batch_size=4, partial=partial)
    assert mended.read == 4


def test_unreadable_images_are_left_out_only_if_asked() -> None:
    """Without image 0, class 0 has .2 alone."""
    skipped: list[str] = []
    found = extract(brightness, Images(4, broken=(0,)), CLASSES, "b", passed_over=skipped.append)
    assert skipped == ["0.jpg: truncated"]
    assert found.counts.tolist() == [1, 2]
    assert found.means[0, 0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="none of 2 images could be read"):
        extract(brightness, Images(2, broken=(0, 1)), CLASSES, "b", passed_over=skipped.append)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The sums of images 0, 2 and 3 of eight, for image 1 could not be read."""
    partial = tmp_path / "sums.safetensors"
    with pytest.raises(KeyboardInterrupt):
        extract(
            brightness,
            Images(8, broken=(1,)),
            CLASSES,
            "b",
            batch_size=4,
            partial=partial,
            passed_over=lambda message: None,
            stop=stopping_after(1),
        )
    return partial


def test_a_run_that_goes_on_tells_of_what_was_left_out_before_the_stop(stopped: Path) -> None:
    skipped: list[str] = []
    rest = Images(8, broken=(1, 6))
    found = extract(brightness, rest, CLASSES, "b", batch_size=4, partial=stopped, passed_over=skipped.append)
    assert skipped == ["1.jpg: truncated", "6.jpg: truncated"]
    assert (found.counts.tolist(), rest.read) == ([3, 3], 3)


def test_sums_without_a_image_are_not_gone_on_from_as_if_whole(stopped: Path) -> None:
    """The image's own error comes at once, and the sums stay; if it can be read by now, all is summed up anew."""
    kept = stopped.read_bytes()
    with pytest.raises(ValueError, match=r"^1.jpg: truncated$"):
        extract(brightness, Images(8, broken=(1,)), CLASSES, "b", batch_size=4, partial=stopped)
    assert stopped.read_bytes() == kept
    found = extract(brightness, Images(8), CLASSES, "b", batch_size=4, partial=stopped)
    whole = extract(brightness, Images(8), CLASSES, "b", batch_size=4)
    assert found.counts.tolist() == [4, 4]
    assert found.means.tobytes() == whole.means.tobytes()


def test_sums_that_do_not_say_what_is_missing_from_them_are_refused(stopped: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(stopped), stopped)
    with pytest.raises(ValueError, match=r"damaged \(it tells of 3 images and says 4\); delete it"):
        extract(brightness, Images(8), CLASSES, "b", partial=stopped)


def test_damaged_sums_are_not_gone_on_from(tmp_path: Path) -> None:
    partial = tmp_path / "sums.safetensors"
    partial.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"sums\.safetensors is damaged .* delete it to extract from the first"):
        extract(brightness, Images(4), CLASSES, "b", partial=partial)


def test_features_that_are_not_a_finite_vector_each_are_refused() -> None:
    def poisoned(frames: Tensor) -> Tensor:
        return torch.where(frames.mean(dim=(1, 2, 3)) > 0.15, torch.nan, 1.0)[:, None]

    with pytest.raises(FloatingPointError, match="features of 2 are not finite"):
        extract(poisoned, Images(4), CLASSES, "b")
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2, 2\) for 4 images; expected a vector of each"):
        extract(lambda frames: frames, Images(4), CLASSES, "b")
    with pytest.raises(ValueError, match="labels from 0 to 1 among 1 classes"):
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


def test_small_classes_are_dropped_and_joined_domains_keep_their_names() -> None:
    assert domain("abc", [5, 1, 9]).at_least(5).names == ("a", "c")
    with pytest.raises(ValueError, match="none of 3 classes has 10 images or more; the largest has 9"):
        domain("abc", [5, 1, 9]).at_least(10)
    both = joined([("x", domain("ab", [1, 2])), ("y", domain("a", [3]))])
    assert (both.names, both.counts.tolist()) == (("x/a", "x/b", "y/a"), [1, 2, 3])
    with pytest.raises(
        ValueError, match=r"x and y cannot be compared: the features of the first are of f, those .* of g"
    ):
        joined([("x", domain("a", [1])), ("y", domain("a", [1], "g"))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no class means at"),
        (b"rubbish", "cannot be read as class means"),
        (b"tensors", "are other tensors than"),
    ],
)
def test_a_file_that_is_no_domain_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    from safetensors.numpy import save

    path = tmp_path / "d.safetensors"
    if content is not None:
        path.write_bytes(save({"w": np.ones(2)}) if content == b"tensors" else content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Centroids.load(path)
