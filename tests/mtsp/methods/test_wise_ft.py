"""Weights between two checkpoints, by hand, and the program that writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtsp.methods.wise_ft import FRACTIONS, along, interpolated
from tools.interpolate import main


def weights(value: float, counter: int, head: int = 2) -> dict[str, Tensor]:
    return {
        "backbone.weight": torch.full((2, 2), value),
        "backbone.num_batches_tracked": torch.tensor(counter),
        "head.weight": torch.full((head, 2), -value),
    }


def only_weight(model: nn.Module) -> float:
    (weight,) = model.state_dict().values()
    return float(weight)


def test_a_quarter_of_the_way_is_three_parts_start_and_one_part_end() -> None:
    found = interpolated(weights(1.0, 10), weights(3.0, 20), 0.25)
    assert found["backbone.weight"].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert found["head.weight"].tolist() == [[-1.5, -1.5], [-1.5, -1.5]]


def test_counters_are_those_of_the_nearer_end_and_keep_their_type() -> None:
    found = {fraction: interpolated(weights(1.0, 10), weights(3.0, 21), fraction) for fraction in (0.25, 0.75)}
    counters = [values["backbone.num_batches_tracked"] for values in found.values()]
    assert [int(counter) for counter in counters] == [10, 21]  # an average would be 15.5, which no counter can hold
    assert all(counter.dtype == torch.int64 for counter in counters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_are_exact(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = ({"w": torch.randn(100, generator=generator).to(dtype)} for _ in range(2))
    assert torch.equal(interpolated(start, end, 0.0)["w"], start["w"])
    assert torch.equal(interpolated(start, end, 1.0)["w"], end["w"])


def test_half_precision_is_mixed_in_float32() -> None:
    # 40000 + 50000 is beyond float16; their middle is not.
    start, end = ({"w": torch.tensor([value], dtype=torch.float16)} for value in (40000.0, 50000.0))
    found = interpolated(start, end, 0.5)["w"]
    assert found.dtype == torch.float16
    assert found.item() == 45000 - 45000 % 32  # float16 has steps of 32 there


def test_the_given_weights_stay_as_they_are() -> None:
    start, end = weights(1.0, 1), weights(3.0, 2)
    for fraction in (0.0, 0.5, 1.0):
        interpolated(start, end, fraction)["backbone.weight"].zero_()
    assert start["backbone.weight"].unique().item() == 1.0
    assert end["backbone.weight"].unique().item() == 3.0


def test_a_new_head_is_the_ends_when_only_the_backbone_is_interpolated() -> None:
    found = interpolated(weights(1.0, 1, head=2), weights(3.0, 2, head=5), 0.5, only=["backbone"])
    assert found["backbone.weight"].unique().item() == 2.0
    assert found["head.weight"].shape == (5, 2)
    assert found["head.weight"].unique().item() == -3.0
    headless = {name: value for name, value in weights(1.0, 1).items() if name != "head.weight"}
    assert interpolated(headless, weights(3.0, 2), 0.5, only=["backbone"]).keys() == weights(3.0, 2).keys()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"fraction": 1.2}, {}, "between 0 and 1, got 1.2"),
        ({"fraction": float("nan")}, {}, "between 0 and 1, got nan"),
        ({"end": weights(1.0, 1, head=3)}, {}, "head.weight has shape (2, 2) in `start`, (3, 2) in `end`"),
        ({"end": {"backbone.weight": torch.ones(2, 2)}}, {}, "2 tensors of `start` are not in `end`, the first"),
        ({"start": {"backbone.weight": torch.ones(2, 2)}}, {}, "2 tensors of `end` are not in `start`, the first"),
        ({}, {"only": ["back"]}, "no tensor is named 'back'"),  # a prefix ends before a dot
    ],
)
def test_what_cannot_be_interpolated_is_said(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    given = {"start": weights(1.0, 1), "end": weights(3.0, 2), "fraction": 0.5} | change
    with pytest.raises(ValueError, match=r".*") as error:
        interpolated(**given, **options)
    assert message in str(error.value)


def test_a_walk_measures_every_fraction_and_leaves_the_model_as_it_came() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(7.0)
    start, end = {"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[10.0]])}
    found = along(model, start, end, only_weight)
    assert list(found) == list(FRACTIONS)
    assert list(found.values()) == pytest.approx([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert model.weight.item() == 7.0


def test_a_walk_that_fails_leaves_the_model_as_it_came() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(7.0)

    def fail(model: nn.Module) -> None:
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        along(model, {"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}, fail)
    assert model.weight.item() == 7.0
    measured: list[float] = []
    with pytest.raises(ValueError, match=r"got 2"):
        along(
            model,
            {"weight": torch.zeros(1, 1)},
            {"weight": torch.ones(1, 1)},
            lambda model: measured.append(only_weight(model)),
            fractions=[0.0, 2.0],
        )
    assert not measured  # told before anything was measured


def test_the_program_writes_the_weights_between_two_files(tmp_path: Path) -> None:
    save_file(weights(1.0, 10), tmp_path / "a.safetensors")
    save_file(weights(3.0, 20), tmp_path / "b.safetensors")
    out = tmp_path / "c.safetensors"
    arguments = ["--start", tmp_path / "a.safetensors", "--end", tmp_path / "b.safetensors", "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    assert load_file(out)["backbone.weight"].unique().item() == 2.0


def test_without_a_start_it_is_what_the_run_started_from(
    values: dict[str, Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    values["train"] |= {"steps": 1}
    values["evaluation"] = {"data": []}
    train(values, tmp_path / "source")
    values["branches"] = {
        name: {"weights": str(tmp_path / "source/weights.safetensors")} for name in values["branches"]
    }
    train(values | {"seed": 9}, tmp_path / "run")
    assert main(["--end", str(tmp_path / "run"), "--fraction", "0", "--out", str(tmp_path / "zero.safetensors")]) == 0
    source, found = (load_file(tmp_path / name) for name in ("source/weights.safetensors", "zero.safetensors"))
    assert source.keys() == found.keys()
    assert all(torch.equal(value, source[name]) for name, value in found.items())


def test_what_the_program_cannot_do_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(weights(1.0, 10), tmp_path / "a.safetensors")
    (tmp_path / "broken.safetensors").write_text(json.dumps({}))
    for arguments, message in (
        (["--end", tmp_path / "none.safetensors"], "is not a run folder, so its starting weights are unknown"),
        (["--end", tmp_path / "a.safetensors", "--start", tmp_path / "none"], "no weights at"),
        (
            ["--end", tmp_path / "broken.safetensors", "--start", tmp_path / "a.safetensors"],
            "cannot be read",
        ),
    ):
        line = [str(argument) for argument in (*arguments, "--out", tmp_path / "out.safetensors")]
        assert main(line) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
