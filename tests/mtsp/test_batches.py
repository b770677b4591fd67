"""Images that are mixed in pairs, and the loss of their labels, against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mtsp.batches import mixed, packed, unpacked
from mtsp.tasks import ClassificationConfig, Tasks
from mtsp.types import Batch, Outputs


def _pairs() -> Batch:
    """Four images of 2x2: all 0, 8, 16 and 24; the first is mixed by mixup, the third by CutMix, the others hardly."""
    frame = 8 * torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    mix = torch.tensor([[0.75, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0.5, 0, 2, 1, 2], [1, 1, 1, 0, 0]])
    return Batch(name=["a", "b", "c", "d"], frame=frame, label=torch.tensor([0, 1, 2, 0]), mix=mix)


def test_each_image_is_mixed_with_its_neighbor_before_that_is_mixed() -> None:
    batch: Any = mixed(_pairs())
    assert "mix" not in batch
    assert batch["frame"][:, 0].flatten(1).tolist() == [[2] * 4, [8] * 4, [16, 24, 16, 24], [24] * 4]
    assert batch["label"].tolist() == [0, 1, 2, 0]
    assert batch["other_label"].tolist() == [1, 0, 0, 2]
    assert batch["label_weight"].tolist() == [0.75, 1, 0.5, 1]


def test_the_loss_of_a_mixed_label_is_the_weighted_loss_of_both() -> None:
    tasks = Tasks(classification=ClassificationConfig(aux_loss=0.4))
    batch = tasks.collate([Batch(**{**_row(i)}) for i in range(4)])  # pyright: ignore[reportArgumentType]
    logits = torch.tensor([[0.0, math.log(3), -1e4]]).expand(4, 3)  # probabilities 1/4, 3/4, 0
    sums = tasks.sums(Outputs(label_logits=logits[:2], aux_label_logits=logits[:2]), _half(batch))
    first, second = math.log(4), math.log(4 / 3)
    assert sums["classification"].item() == pytest.approx(0.75 * first + 0.25 * second + second)
    assert sums["classification_aux"].item() == pytest.approx(0.4 * (0.75 * first + 0.25 * second + second))
    assert batch.get("counts") == {"classification": 4, "classification_aux": 4}


def _row(i: int) -> dict[str, object]:
    whole = _pairs()
    return {"name": [whole["name"][i]], **{key: value[i] for key, value in whole.items() if key != "name"}}  # pyright: ignore


def _half(batch: Batch) -> Batch:
    return Batch(**{k: v[:2] if k != "counts" else v for k, v in batch.items()})  # pyright: ignore


def test_label_smoothing_of_mixed_labels_is_that_of_soft_targets() -> None:
    tasks = Tasks(classification=ClassificationConfig(label_smoothing=0.1))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    batch: Any = mixed(_pairs())
    own, other = (F.one_hot(batch[key], 3).float() for key in ("label", "other_label"))
    share = batch["label_weight"][:, None]
    expected = F.cross_entropy(logits, share * own + (1 - share) * other, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(tasks.sums(Outputs(label_logits=logits), batch)["classification"], expected)


@pytest.mark.parametrize(("channels_last", "strides"), [(False, (42, 14, 7, 1)), (True, (42, 1, 21, 3))])
def test_a_batch_from_a_worker_is_one_block_of_shared_memory(channels_last: bool, strides: tuple[int, ...]) -> None:
    frame, mask = torch.rand(5, 3, 2, 7), torch.randint(0, 9, (5, 2, 7), dtype=torch.uint8)
    valid, nothing = mask > 3, torch.zeros(0, 4)
    given: Any = {"name": ["a"], "frame": frame, "mask": mask, "valid": valid, "label": nothing, "counts": {"flow": 3}}
    sent = packed(given, channels_last=channels_last, shared=True)
    found: Any = unpacked(sent)
    assert sent.data.is_shared()
    assert sent.data.nbytes == 896 + 128 + 128  # 5*3*2*7*4 = 840 bytes, and 70 twice: multiples of 64
    assert found["frame"].stride() == strides
    assert {value.untyped_storage().data_ptr() for value in found.values() if torch.is_tensor(value)} == {
        sent.data.data_ptr()
    }
    assert found.keys() == given.keys()
    assert all(torch.equal(found[key], given[key]) for key in ("frame", "mask", "valid", "label"))
    assert (found["name"], found["counts"], found["mask"].dtype) == (["a"], {"flow": 3}, torch.uint8)
