"""Every weight is in the group of its branch, its module and its depth."""

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from mtsp.optim.groups import depth_scales, parameter_groups
from mtsp.optim.schedule import set_learning_rates


def two() -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "b": nn.Linear(1, 1)})


def by_group(groups: list[dict[str, Any]], model: nn.Module) -> list[tuple[str, float, list[str]]]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    return [(group["name"], group["lr"], [names[id(weight)] for weight in group["params"]]) for group in groups]


def test_groups_follow_the_branches_and_the_schedule_keeps_their_ratio() -> None:
    optimizer = torch.optim.SGD(parameter_groups(two(), {"a": 0.1, "b": 0.02}))
    assert [(g["name"], len(g["params"])) for g in optimizer.param_groups] == [("a", 4), ("b", 2)]
    assert set_learning_rates(optimizer, 0.5) == {"a": 0.05, "b": 0.01}
    assert set_learning_rates(optimizer, 1.0) == {"a": 0.1, "b": 0.02}


def test_a_module_has_a_group_of_its_own() -> None:
    model = two()
    assert by_group(parameter_groups(model, {"a": 0.1, "a.1": 0.5, "b": 0.02}), model) == [
        ("a", 0.1, ["a.0.weight", "a.0.bias"]),
        ("a.1", 0.5, ["a.1.weight", "a.1.bias"]),
        ("b", 0.02, ["b.weight", "b.bias"]),
    ]


def test_each_depth_has_a_group_and_the_rate_that_is_told_is_the_largest() -> None:
    """0.1 * 0.5 ** 2 in the first of two pretrained blocks, 0.1 * 0.5 in the second, 0.1 in the new head."""
    model = nn.ModuleDict({"a": nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))})
    scales = depth_scales(model, "a", 0.5, {"a.0.weight", "a.1.weight"})
    groups = parameter_groups(model, {"a": 0.1}, scales)
    assert by_group(groups, model) == [
        ("a", 0.1, ["a.2.weight"]),
        ("a", 0.025, ["a.0.weight"]),
        ("a", 0.05, ["a.1.weight"]),
    ]
    optimizer = torch.optim.SGD(groups)
    assert set_learning_rates(optimizer, 0.5) == {"a": 0.05}
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0125, 0.025]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 32}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 28}),
        ("resnet18", {}),
        ("resnet50", {}),
    ],
)
def test_depths_are_those_of_timm(name: str, settings: dict[str, Any]) -> None:
    """All is pretrained but the head. timm puts ResNet's first normalization layer into its stem, as here."""
    model = timm.create_model(name, num_classes=3, **settings)
    theirs = {
        id(weight): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.7)
        for weight in group["params"]
    }
    branch = nn.ModuleDict({"backbone": model})
    pretrained = {
        name for name, _ in branch.named_parameters() if not name.startswith(("backbone.head", "backbone.fc"))
    }
    ours = depth_scales(branch, "backbone", 0.7, pretrained)
    expected = {name: theirs[id(weight)] for name, weight in branch.named_parameters()}
    assert {name: ours.get(name, 1.0) for name in expected} == pytest.approx(expected)


def test_the_blocks_of_a_stage_are_found_inside_it() -> None:
    """ConvNeXt's stages are no sequences but hold one: stem, block, and three times down-sampling and block."""
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=0)
    scales = depth_scales(nn.ModuleDict({"b": model}), "b", 0.5, {f"b.{n}" for n, _ in model.named_parameters()})
    names = ["stem.0", "stages.0.blocks.0.mlp.fc1", "stages.1.downsample.1", "stages.1.blocks.0.mlp.fc1"]
    assert [scales[f"b.{name}.weight"] for name in names] == [0.5**8, 0.5**7, 0.5**6, 0.5**5]
    assert scales["b.stages.3.blocks.0.mlp.fc2.weight"] == 0.5


def test_a_weight_of_no_branch_and_a_module_without_weights_are_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "lost": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"weight lost.weight belongs to none of the branches a$"):
        parameter_groups(model, {"a": 0.1})
    with pytest.raises(
        ValueError, match=r"branches.a.modules.2: no weight's name begins with it; a has the modules 0, 1$"
    ):
        parameter_groups(two(), {"a": 0.1, "a.2": 0.1, "b": 0.1})
