"""Confusion counts against a loop over pixels, and the averages made of them."""

import math
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsp.evaluation.confusions import worst_confusions
from mtsp.metrics import ConfusionMatrix, confusion
from mtsp.metrics.kernels import confusion as kernels
from mtsp.metrics.kernels import jit
from mtsp.metrics.kernels.confusion_loops import BLOCK
from mtsp.metrics.kernels.jit import Array


@pytest.fixture(scope="module", autouse=True, params=["a table of each image", "one table and margins"])
def tables(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whatever the number of classes, images are counted as those of few classes, or as those of many."""
    with pytest.MonkeyPatch.context() as patch:
        few = request.param == "a table of each image"
        patch.setattr(kernels, "_CELLS_OF_ONE", math.inf if few else 0)
        patch.setattr(kernels, "_PIXELS_A_CELL", 1e-9)
        yield request.param


def by_hand(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    table = np.zeros((classes, classes + 1), np.int64)
    for guess, label in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if label != ignore:
            table[label, guess if 0 <= guess < classes else classes] += 1
    return table


def test_averages_of_a_table_worked_out_by_hand() -> None:
    # class 0: 3 true, 2 right, one taken for 1; class 1: 1 true, right; class 2: absent; one pixel ignored
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 0, 1, 1, 2]]), np.array([[0, 0, 0, 1, 255]]))
    found = matrix.compute()
    assert found["pixel_accuracy"] == 3 / 4
    assert found["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # the absent class is neither 0 nor 1
    assert found["fw_iou"] == pytest.approx((3 * 2 / 3 + 1 * 1 / 2) / 4)
    assert found["pixels"] == 4
    assert matrix.absent() == [2]
    assert matrix.class_iou() == pytest.approx([2 / 3, 1 / 2, math.nan], nan_ok=True)


def test_a_class_predicted_but_never_true_counts_as_zero() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1, 0]), np.array([0, 0]))
    assert matrix.compute()["miou"] == pytest.approx((1 / 2 + 0) / 2)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 30)),
    classes=st.integers(1, 6),
    ignore=st.sampled_from([255, 0, None]),
    kind=st.sampled_from([np.uint8, np.int64]),
    seed=st.integers(0, 99),
)
def test_labels_of_any_shape_and_type_give_the_counts_of_a_loop(
    shape: tuple[int, int, int], classes: int, ignore: int | None, kind: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(kind)
    if ignore is not None:
        truth[rng.random(shape) < 0.2] = ignore
    prediction = rng.integers(0, classes + 2, shape).astype(kind)  # some are no class
    expected = by_hand(prediction, truth, classes, ignore)
    np.testing.assert_array_equal(confusion(prediction, truth, classes, ignore), expected)
    np.testing.assert_array_equal(confusion(prediction.T, truth.T, classes, ignore), expected)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 20)),
    classes=st.integers(1, 5),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_scores_give_the_counts_of_their_argmax(
    shape: tuple[int, int, int], classes: int, last: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(shape) < 0.1, 255, rng.integers(0, classes, shape)).astype(np.uint8)
    scores = rng.integers(-2, 3, (shape[0], classes, *shape[1:])).astype(np.float32)  # many are equal: the first wins
    expected = by_hand(scores.argmax(axis=1), truth, classes, 255)
    if last:
        scores = np.ascontiguousarray(scores.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(confusion(scores, truth, classes), expected)


@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
def test_each_form_takes_labels_and_scores_and_finds_the_nan(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((2, 9, 11)) < 0.1, 255, rng.integers(0, 4, (2, 9, 11)))
    scores = rng.normal(size=(2, 4, 9, 11)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    scores[rng.random(scores.shape) < 0.05] = np.inf
    labels = np.where(np.isnan(scores).any(axis=1), 4, scores.argmax(axis=1))
    if form == "numpy":
        monkeypatch.setattr(kernels, "label_kernel", lambda: None)
        monkeypatch.setattr(kernels, "plane_kernel", lambda: None)
    if form == "torch":
        monkeypatch.setattr(kernels, "on_host", lambda _: False)
    expected = by_hand(labels, truth, 4, 255)
    assert expected[:, 4].sum() > 0
    for prediction in (scores, labels):
        np.testing.assert_array_equal(confusion(torch.from_numpy(prediction), torch.from_numpy(truth), 4), expected)
    one = confusion(torch.from_numpy(scores[0]), torch.from_numpy(truth[0]), 4)
    np.testing.assert_array_equal(one, by_hand(labels[0], truth[0], 4, 255))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 9)),
    classes=st.integers(1, 9),
    view=st.sampled_from(["cropped", "every second", "channels last"]),
    kind=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_scores_count_the_same_in_any_layout_and_type(
    shape: tuple[int, int, int], classes: int, view: str, kind: torch.dtype, seed: int
) -> None:
    images, height, width = shape
    rng = np.random.default_rng(seed)
    room = torch.from_numpy(rng.integers(-3, 4, (images, classes, 2 * height + 2, 2 * width + 2)) / 2).to(kind)
    scores = {
        "cropped": room[:, :, 1 : height + 1, 2 : width + 2],
        "every second": room[:, :, : 2 * height : 2, : 2 * width : 2],
        "channels last": room[:, :, :height, :width].contiguous(memory_format=torch.channels_last),
    }[view]
    truth = torch.from_numpy(np.where(rng.random(shape) < 0.1, 255, rng.integers(0, classes, shape)).astype(np.uint8))
    best = np.zeros(shape, int)
    values = scores.double().numpy()
    for place in np.ndindex(shape):
        here = values[place[0], :, place[1], place[2]].tolist()
        best[place] = here.index(max(here))  # the first of equal ones
    np.testing.assert_array_equal(confusion(scores, truth, classes), by_hand(best, truth.numpy(), classes, 255))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_infinities_and_nan_of_every_type_compare_as_numbers_do(kind: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    rows = [
        ([-0.0, 0.0, -1.0], 0),  # equal: the first
        ([0.0, -0.0, -1.0], 0),
        ([-inf, -inf, -inf], 0),
        ([1.0, inf, inf], 1),
        ([-2.0, -1.0, -1.5], 1),
        ([nan, 5.0, inf], 3),  # no class
        ([5.0, inf, -nan], 3),
        ([-1e-7, 0.0, 1e-7], 2),  # the smallest steps of 16 bits
    ]
    scores = torch.tensor([row for row, _ in rows]).T.reshape(1, 3, 1, -1).to(kind)
    expected = by_hand(np.array([best for _, best in rows]), np.zeros(len(rows), int), 3, 255)
    np.testing.assert_array_equal(confusion(scores, torch.zeros(1, 1, len(rows), dtype=torch.long), 3), expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("classes", [3, 16, 37])
def test_classes_that_are_neighbors_in_memory_give_the_counts_of_planes(kind: torch.dtype, classes: int) -> None:
    rng = np.random.default_rng(classes)
    values = rng.integers(0, 50, (2, classes, 9, 13)).astype(np.float64)  # the highest is often there twice
    values[rng.random(values.shape) < 0.1] *= -1 if kind != torch.uint8 else 1
    if kind.is_floating_point:
        for special, share in ((np.inf, 0.02), (-np.inf, 0.2), (-0.0, 0.2), (np.nan, 0.005), (-np.nan, 0.005)):
            values[rng.random(values.shape) < share] = special
        values[0, :, 0] = -np.inf  # nothing is higher: the first
        values[0, :, 1] = rng.choice([-0.0, 0.0], values[0, :, 1].shape)  # equal: the first
    scores = torch.from_numpy(values).to(kind)
    truth = rng.integers(0, classes, (2, 9, 13))
    best = np.where(np.isnan(values).any(axis=1), classes, values.argmax(axis=1))
    if kind.is_floating_point:
        assert (best == classes).any()
        assert (best[0, :2] == 0).any()
    expected = by_hand(best, truth, classes, 255)
    last = scores.contiguous(memory_format=torch.channels_last)
    assert last.stride(1) == 1
    sparse = last.repeat_interleave(2, dim=3)[..., ::2]
    apart = scores.new_zeros(2, 9, 13, 2 * classes + 1)[..., 1::2].permute(0, 3, 1, 2).copy_(scores)
    assert apart.stride(1) == 2
    forms: list[Array] = [scores, last, sparse, apart]
    if kind != torch.bfloat16:  # numpy has none, and torch no negative strides
        forms.append(np.ascontiguousarray(scores.numpy()[:, ::-1])[:, ::-1])
    for one in forms:
        np.testing.assert_array_equal(confusion(one, truth, classes), expected)


@pytest.mark.parametrize("ignore", [-1, 255, 65535, 65536 + 3, 2**32 + 3, 2**32 - 1])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_only_the_true_label_itself_is_ignored_whatever_its_type(ignore: int, kind: type) -> None:
    labels = np.array([0, 1, 2, 3, 3])
    held = np.iinfo(kind).min <= ignore <= np.iinfo(kind).max
    truth = np.array([0, 1, 2, 3, ignore if held else 3]).astype(kind)
    expected = np.diag([1, 1, 1, 1 if held else 2])
    np.testing.assert_array_equal(confusion(labels.astype(kind), truth, 4, ignore)[:, :4], expected)
    if np.iinfo(kind).min < 0 and ignore != -1:  # no class, and not what is ignored
        with pytest.raises(ValueError, match="1 pixels of the truth"):
            confusion(np.zeros(1, kind), np.full(1, -1, kind), 4, ignore)


def test_many_pixels_are_counted_in_parts_that_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "threads", lambda: 3)
    monkeypatch.setattr(kernels, "_PIXELS_A_THREAD", 100)
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 5, (2, 3, 41, 53)).astype(np.uint8)
    scores = rng.normal(size=(3, 5, 41, 53)).astype(np.float32)
    for rows in (slice(None), slice(1, 40)):  # whole images, and rows with a gap between images
        for columns in (slice(None), slice(2, 50)):  # and with a gap between rows
            place = (slice(None), rows, columns)
            expected = by_hand(prediction[place], truth[place], 5, 255)
            np.testing.assert_array_equal(confusion(prediction[place], truth[place], 5), expected)
            expected = by_hand(scores[:, :, rows, columns].argmax(axis=1), truth[place], 5, 255)
            np.testing.assert_array_equal(confusion(scores[:, :, rows, columns], truth[place], 5), expected)


@pytest.mark.parametrize("kinds", [(np.uint8, np.uint8), (np.int64, np.int64), (np.uint8, np.int64)])
def test_rows_longer_than_a_block_of_pixels_are_counted_to_their_end(kinds: tuple[type, type]) -> None:
    rng, shape = np.random.default_rng(0), (1, 2, 2 * BLOCK + 905)
    prediction, truth = (rng.integers(0, 5, shape).astype(kind)[:, :, :-1] for kind in kinds)
    np.testing.assert_array_equal(confusion(prediction, truth, 5), by_hand(prediction, truth, 5, None))


@pytest.mark.parametrize("order", ["planes", "channels last"])
def test_rows_of_scores_longer_than_a_block_are_counted_to_their_end(order: str) -> None:
    rng, width = np.random.default_rng(0), 2 * BLOCK + 905
    scores, truth = rng.normal(size=(1, 5, 2, width)).astype(np.float32), rng.integers(0, 5, (1, 2, width))
    expected = by_hand(scores.argmax(axis=1)[..., :-1], truth[..., :-1], 5, None)
    if order == "channels last":
        scores = np.ascontiguousarray(scores.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(confusion(scores[..., :-1], truth[..., :-1], 5), expected)


def test_images_upside_down_are_counted_where_they_lie() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(2, 5, 7, 9)), rng.integers(0, 5, (2, 7, 9))
    expected = by_hand(scores.argmax(axis=1)[:, ::-1], truth[:, ::-1], 5, None)
    assert np.shares_memory(jit.memory(scores[:, :, ::-1])[0], scores)
    np.testing.assert_array_equal(confusion(scores[:, :, ::-1], truth[:, ::-1], 5), expected)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64, ">i4"])
def test_labels_out_of_range_are_no_class_in_any_type(kind: type | str) -> None:
    largest = np.iinfo(np.dtype(kind)).max  # pyright: ignore[reportCallIssue, reportArgumentType]
    prediction, truth = np.array([[0, largest, 1, 2]], kind), np.array([[0, 0, 1, largest]], kind)
    found = confusion(prediction, truth, 2, ignore=int(largest) if kind is not np.uint64 else -1 - 2**63 + 2**63)
    np.testing.assert_array_equal(found, [[1, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match="1 pixels of the truth"):
        confusion(prediction, truth, 2, ignore=7)


def test_a_label_below_zero_is_a_class_for_nobody_but_may_be_ignored() -> None:
    found = confusion(np.array([0, -1, 1]), np.array([-1, 0, 1]), 2, ignore=-1)
    np.testing.assert_array_equal(found, [[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (1, 1), (0, 3), (2, 0, 3), (1, 1, 1, 1), (2, 3, 4, 5)])
def test_empty_and_single_pixels_and_any_number_of_axes(shape: tuple[int, ...]) -> None:
    prediction, truth = np.ones(shape, np.uint8), np.zeros(shape, np.uint8)
    for one in (prediction, torch.from_numpy(prediction)):
        np.testing.assert_array_equal(confusion(one, truth, 2), [[0, prediction.size, 0], [0, 0, 0]])


def test_image_iou_is_the_mean_of_the_images_own() -> None:
    matrix = ConfusionMatrix(3)
    truth = np.array([[[0, 0, 1, 1]], [[2, 2, 2, 2]], [[255, 255, 255, 255]]])
    prediction = np.array([[[0, 0, 1, 0]], [[2, 2, 2, 0]], [[0, 0, 0, 0]]])
    matrix.update(prediction, truth, ["b", "a", "none"])
    # b: class 0 2/3, class 1 1/2; a: class 2 3/4, class 0 predicted but not there 0; none: nothing known
    images = [(2 / 3 + 1 / 2) / 2, (3 / 4 + 0) / 2]
    found = matrix.compute()
    assert found["image_iou"] == pytest.approx(sum(images) / 2)
    assert found["images"] == 2
    assert found["miou"] == pytest.approx((2 / 4 + 1 / 2 + 3 / 4) / 3)  # pooled: class 0 has two false pixels, not one
    each = matrix.per_image()
    assert list(each) == ["a", "b", "none"]
    assert each["a"] == {"image_iou": pytest.approx(images[1]), "pixel_accuracy": 3 / 4, "pixels": 4}
    assert math.isnan(each["none"]["image_iou"])
    with pytest.raises(ValueError, match="mask of a was scored twice"):
        matrix.update(prediction[0], truth[0], "a")
    with pytest.raises(ValueError, match="1 names for 3 images"):
        matrix.update(prediction, truth, "c")
    assert matrix.compute() == found  # what is refused leaves no trace


def test_the_classes_most_often_confused_come_first() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([1, 1, 0, 2, 2, 2, 7, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 2]))
    # 0 for 1 twice and for 2 once of four; 1 for 2 twice and for no class once of three; 2 for 0
    found = worst_confusions(matrix.counts)
    assert found[:2] == [(1, 2, 2, 2 / 3), (0, 1, 2, 2 / 4)]  # of equal ones the larger share
    assert found[2:] == [(2, 0, 1, 1), (1, 3, 1, 1 / 3), (0, 2, 1, 1 / 4)]
    assert worst_confusions(matrix.counts, 3) == found[:3]
    assert worst_confusions(ConfusionMatrix(2).counts) == []


def test_background_missed_ignored_or_a_class() -> None:
    # classes 0 (background), 1 and 2
    prediction, truth = np.array([0, 0, 1, 1, 1, 0, 2, 2]), np.array([0, 0, 0, 1, 1, 1, 2, 2])
    matrix = ConfusionMatrix(3)
    matrix.update(prediction, truth)
    assert matrix.compute()["miou"] == pytest.approx((2 / 4 + 2 / 4 + 1) / 3)
    foreground = matrix.without(0)  # background pixels unknown; one pixel of class 1 is still lost to it
    assert foreground.class_iou() == pytest.approx([2 / 3, 1])
    known = truth > 0
    direct = ConfusionMatrix(2)
    direct.update(np.where(prediction > 0, prediction - 1, 9)[known], truth[known] - 1)
    np.testing.assert_array_equal(foreground.counts, direct.counts)
    assert foreground.miou_with_missed() == pytest.approx((2 / 3 + 1) / 3)
    assert math.isnan(ConfusionMatrix(2).miou_with_missed())
    with pytest.raises(ValueError, match="class 3 of 3"):
        matrix.without(3)


def test_images_dealt_out_in_any_way_give_identical_numbers() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 4, (2, 13, 7, 9))
    results = []
    for processes in (1, 2, 3):
        parts = [ConfusionMatrix(4) for _ in range(processes)]
        for i in rng.permutation(13):
            parts[i % processes].update(prediction[i], truth[i], f"{i}")
        for part in parts[1:]:
            parts[0].merge(part)
        results.append((parts[0].compute(), parts[0].per_image(), worst_confusions(parts[0].counts)))
    assert results[0] == results[1] == results[2]


def test_parts_merged_after_pickling_equal_the_whole() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 3, (2, 5, 8, 8))
    whole, merged = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(prediction, truth)
    for some in (slice(0, 1), slice(1, 5)):
        part = ConfusionMatrix(3)
        part.update(prediction[some], truth[some])
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged.compute() == whole.compute()
    merged.reset()
    assert merged.counts.sum() == 0
    with pytest.raises(ValueError, match=r"of 3 classes \(ignoring 255\) and 4 classes \(ignoring 255\); both need"):
        merged.merge(ConfusionMatrix(4))


def test_all_ignored_gives_nan_and_no_pixels() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8))
    found = matrix.compute()
    assert found.pop("pixels") == found.pop("images") == 0
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 2), int), np.array([[0, 1], [7, 9]]), "2 pixels of the truth have a label that is neither"),
        (np.zeros((3, 2), int), np.zeros((2, 3), int), r"prediction \(3, 2\) for truth \(2, 3\)"),
        (np.zeros((1, 5, 2, 2)), np.zeros((1, 2, 2), int), r"or scores \(1, 3, 2, 2\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction of type float64; labels are whole numbers"),
        (np.zeros((3, 2)), np.zeros(2, int), r"prediction \(3, 2\) for truth \(2,\) .* labels of that shape$"),
    ],
)
def test_what_does_not_fit_is_named(prediction: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(prediction, truth, 3)


def test_a_matrix_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 class, got 0"):
        ConfusionMatrix(0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int64])
@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
def test_a_number_of_classes_that_the_labels_type_cannot_hold_is_no_trouble(
    form: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = 300
    truth, prediction = np.array([[[0, 1, 100, 127]]], kind), np.array([[[0, 2, 100, 127]]], kind)
    if form == "numpy":
        monkeypatch.setattr(kernels, "label_kernel", lambda: None)
    ours, theirs = (torch.from_numpy(array) if form == "torch" else array for array in (prediction, truth))
    if form == "torch":
        monkeypatch.setattr(kernels, "on_host", lambda _: False)
    found = confusion(ours, theirs, classes, ignore=None)
    assert [tuple(map(int, cell)) for cell in np.argwhere(found)] == [(0, 0), (1, 2), (100, 100), (127, 127)]


def test_labels_that_are_no_whole_numbers_are_refused_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "on_host", lambda _: False)
    with pytest.raises(ValueError, match="labels are whole numbers"):
        confusion(torch.ones(4, 4).long(), torch.full((4, 4), 1.7), 3)


def test_an_ignored_class_is_absent_even_where_it_is_predicted() -> None:
    matrix = ConfusionMatrix(3, ignore=0)
    matrix.update(np.array([0, 1, 2, 0]), np.array([0, 1, 2, 1]))
    assert matrix.absent() == [0]
    assert matrix.compute()["miou"] == pytest.approx((1 / 2 + 1) / 2)  # the wrong 0 costs class 1 a pixel
