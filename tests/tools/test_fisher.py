"""Fisher information of an experiment's start: the file, what it may be used for, and runs that are held by it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.files.images import write_image
from data.files.masks import write_mask
from mtsp.config import ConfigError, parse
from mtsp.files.tensors import write_tensors
from mtsp.fisher.estimate import FisherSum, diagonal_fisher, load_fisher, mean_one, save_fisher
from mtsp.fisher.partial import PartialEstimate
from mtsp.training import estimate_fisher as program
from mtsp.training.checkpoint import storage
from mtsp.training.sample_stream import SinglePass
from tests import two_processes
from tools import train as training
from tools.build import AnyExperiment, build_network
from tools.fisher import main

CLASSES = ("dark", "gray", "bright")
Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]


@pytest.fixture
def classifying(tmp_path: Path) -> dict[str, Any]:
    """Nine labeled images of 32x32, and a classifier whose backbone starts from a file."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / f"labeled/{name}").mkdir(parents=True)
        for index in range(3):
            image = rng.integers(0, 40, (32, 32, 3)) + 80 * label
            write_image(tmp_path / f"labeled/{name}/{index}.png", image.astype(np.uint8))
    values = {
        "name": "grays",
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 3},
        "branches": {"backbone": {"weights": str(tmp_path / "start.safetensors")}, "head": {"lr": 0.2}},
        "data": {"grays": {"dataset": {"name": "image_folder", "root": str(tmp_path / "labeled")}}},
        "tasks": {"classification": {}},
        "regularizer": {"name": "l2sp", "alpha": 0.1, "beta": 0.001},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "train": {"steps": 4, "stages": [{"steps": 1, "batch_size": {"grays": 3}}], "workers": 0, "save_every": 2},
        "evaluation": {"data": ["grays"], "at_start": False},
        "tracking": {"log_every": 1, "images": 0},
    }
    torch.manual_seed(7)
    write_tensors(tmp_path / "start.safetensors", parse(AnyExperiment, values).model.build().state_dict())
    (tmp_path / "grays.yaml").write_text(json.dumps(values))
    return values


def estimating(folder: Path, out: str = "fisher.safetensors", *more: str) -> int:
    return main(["--config", f"{folder}/grays.yaml", "--out", f"{folder}/{out}", *more])


def notes(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def content(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """All that is in a file, whose header is in any order."""
    return {name: value.numpy().tobytes() for name, value in load_fisher(path).items()}, notes(path)


def test_the_file_has_the_fisher_information_of_the_start_on_the_training_images(
    classifying: dict[str, Any], tmp_path: Path
) -> None:
    assert estimating(tmp_path, "fisher.safetensors", "--batch-size", "4") == 0  # the last batch of three is not whole
    one = parse(AnyExperiment, classifying)
    begun, examples = build_network(one), one.data["grays"].build()
    frames = torch.stack([examples[i]["frame"] for i in range(9)])
    expected = diagonal_fisher(
        begun.model, [frames], inputs=lambda x: (x, None), logits=lambda out: out["label_logits"], names=begun.anchors
    )
    found = load_fisher(tmp_path / "fisher.safetensors")
    assert found.keys() == expected.keys() == begun.anchors.keys()
    assert all(name.startswith("backbone.") for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    said = notes(tmp_path / "fisher.safetensors")
    assert (said["labels"], said["samples"], said["observations"]) == ("exact", "9", "9")
    assert said["normalization"] == "divided by the mean over all entries"
    assert not list(tmp_path.glob("*.part"))


def test_fewer_images_are_as_many_as_were_asked_for(classifying: dict[str, Any], tmp_path: Path) -> None:
    assert (
        estimating(tmp_path, "fisher.safetensors", "--examples", "5", "--batch-size", "3", "--mode", "empirical") == 0
    )
    assert notes(tmp_path / "fisher.safetensors")["samples"] == "5"


class Impatient(program.StopSignals):
    """As if a signal came with the first image."""

    def received(self) -> bool:
        return True


def test_stopped_and_taken_up_again_it_is_the_same_to_the_bit(
    classifying: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = (
        "--mode",
        "sampled",
        "--draws",
        "2",
        "--batch-size",
        "4",
        "data.grays.augment={crop: [32, 32], area: [0.3, 1]}",
    )
    assert estimating(tmp_path, "whole.safetensors", *how) == 0
    with monkeypatch.context() as patched:
        patched.setattr(program, "StopSignals", Impatient)
        assert estimating(tmp_path, "fisher.safetensors", *how) == 75
        assert "the same command continues from here" in capsys.readouterr().err
        assert estimating(tmp_path, "fisher.safetensors", *how) == 75
    assert (tmp_path / "fisher.safetensors.part").is_file()
    assert not (tmp_path / "fisher.safetensors").exists()
    assert estimating(tmp_path, "fisher.safetensors", *how, "--seed", "1") == 1  # it would add what does not belong
    assert (
        "fisher.safetensors.part was started with another seed, 0; use the same settings, or" in capsys.readouterr().err
    )
    assert estimating(tmp_path, "fisher.safetensors", *how) == 0
    assert "8 of 9 images" in capsys.readouterr().err  # where it went on
    assert content(tmp_path / "fisher.safetensors") == content(tmp_path / "whole.safetensors")
    assert not (tmp_path / "fisher.safetensors.part").exists()


@pytest.mark.parametrize("batches", ["{grays: 3}", "{more: 3, grays: 3}"])
def test_sums_over_other_data_or_in_another_order_are_not_taken_up(
    batches: str,
    classifying: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = classifying["data"] | {"more": classifying["data"]["grays"]}
    stages = [{"steps": 1, "batch_size": {"grays": 3, "more": 3}}]
    values = classifying | {"data": both, "train": classifying["train"] | {"stages": stages}}
    (tmp_path / "grays.yaml").write_text(json.dumps(values))
    with monkeypatch.context() as patched:
        patched.setattr(program, "StopSignals", Impatient)
        assert estimating(tmp_path) == 75
    part = (tmp_path / "fisher.safetensors.part").read_bytes()
    capsys.readouterr()
    assert estimating(tmp_path, "fisher.safetensors", f"train.stages=[{{steps: 1, batch_size: {batches}}}]") == 1
    assert "part was started with another data, ['grays', 'more']; use the same settings, or" in capsys.readouterr().err
    assert (tmp_path / "fisher.safetensors.part").read_bytes() == part
    assert estimating(tmp_path) == 0
    assert notes(tmp_path / "fisher.safetensors")["samples"] == "18"


def test_sums_are_kept_for_the_same_settings_alone(tmp_path: Path) -> None:
    sums = FisherSum(torch.nn.Linear(2, 2))
    kept = PartialEstimate(tmp_path / "f.part", {"seed": 0, "data.a": {}, "data.b": {}})
    kept.save(sums, 3)
    assert kept.load(sums) == 3
    with pytest.raises(
        ValueError, match=r"f\.part was started with another data\.b, \{\}; use the same settings, or delete"
    ):
        PartialEstimate(kept.path, {"seed": 0, "data.a": {}}).load(sums)
    with pytest.raises(
        ValueError, match=r"f\.part was started without data\.c; use the same settings, or delete the file"
    ):
        PartialEstimate(kept.path, {**kept.settings, "data.c": {}}).load(sums)
    save_file({"weight": torch.ones(1)}, kept.path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"f\.part is not a partial estimate: it lacks done; move it elsewhere"):
        kept.load(sums)


def test_a_image_that_cannot_be_read_costs_nothing_that_was_done(
    classifying: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimating(tmp_path, "whole.safetensors", "--batch-size", "1") == 0
    last = SinglePass(
        parse(AnyExperiment, classifying).data["grays"].build(),
        program.make_accelerator("fp32"),
        images=9,
        batch=1,
        seed=0,
        workers=0,
    )
    name = [batch["name"][0] for _, batch in last.batches(0)][-1]
    bad = tmp_path / f"labeled/{name}.png"
    shutil.move(bad, tmp_path / "good.png")
    bad.write_bytes((tmp_path / "good.png").read_bytes()[:100])
    capsys.readouterr()
    assert estimating(tmp_path, "fisher.safetensors", "--batch-size", "1") == 1
    assert f"{name}.png" in capsys.readouterr().err
    shutil.move(tmp_path / "good.png", bad)
    assert estimating(tmp_path, "fisher.safetensors", "--batch-size", "1") == 0
    assert "Fisher information: 8 of 9 images, 0 s" in capsys.readouterr().err.splitlines()[0]
    assert content(tmp_path / "fisher.safetensors") == content(tmp_path / "whole.safetensors")


def test_two_processes_share_the_images_and_come_to_the_same(
    classifying: dict[str, Any], in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    """Five batches of two: the first process has three of them; labels are drawn alike."""
    how = ["--mode", "sampled", "--batch-size", "2"]
    assert estimating(tmp_path, "one.safetensors", *how) == 0
    arguments = ["--config", f"{tmp_path}/grays.yaml", "--out", f"{tmp_path}/two.safetensors", *how]
    in_two_processes(two_processes.program, main, arguments)
    one, two = (load_fisher(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-7)
    assert notes(tmp_path / "two.safetensors")["samples"] == "9"


def test_pixels_are_drawn_and_exact_labels_of_large_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(2):
        mask = (np.arange(64) * 3 // 64 * np.ones((64, 1))).astype(np.uint8)
        mask[:2] = 255
        write_image(tmp_path / f"frames/{index}.png", rng.integers(0, 255, (64, 64, 3)).astype(np.uint8))
        write_mask(tmp_path / f"masks/{index}.png", mask)
    dataset = {"name": "mask_folder", "frames": f"{tmp_path}/frames", "masks": f"{tmp_path}/masks", "classes": CLASSES}
    values = {
        "name": "stripes",
        "model": {"name": "encnet", "encoder": "tu-test_efficientnet", "classes": 3, "width": 8, "codewords": 2},
        "branches": {"backbone": {"weights": f"{tmp_path}/start.safetensors"}, "head": {}},
        "data": {"stripes": {"dataset": dataset}},
        "tasks": {"segmentation": {}},
        "regularizer": {"name": "l2sp", "alpha": 0.1, "beta": 0.001},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "train": {"steps": 1, "stages": [{"steps": 1, "batch_size": {"stripes": 2}}], "workers": 0},
    }
    write_tensors(tmp_path / "start.safetensors", parse(AnyExperiment, values).model.build().state_dict())
    (tmp_path / "grays.yaml").write_text(json.dumps(values))
    assert estimating(tmp_path) == 0
    said = notes(tmp_path / "fisher.safetensors")
    assert (said["labels"], said["samples"]) == ("sampled, 1 draw", "2")
    assert said["observations"] == str(2 * 62 * 64)  # two rows of each are unknown
    large = "data.stripes={dataset: " + json.dumps(dataset).replace('"', "") + ", size: [256, 256]}"
    capsys.readouterr()
    assert estimating(tmp_path, "large.safetensors", "--mode", "exact", large) == 1
    assert "--mode exact needs 196,608 backward passes for each image" in capsys.readouterr().err  # 3 * 256 * 256


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["branches.backbone.weights=null", "regularizer.name=l2"], "none has pretrained `weights`"),
        (["tasks={flow: {}}"], "Fisher information needs a task that predicts classes; add segmentation or"),
        (["tasks.segmentation={}"], "is estimated for one task; set tasks.classification=null"),
        (["tasks={segmentation: {}}"], "none of grays has a mask, which segmentation needs"),
        (["--draws", "3"], "--draws 3 needs --mode sampled; --mode exact draws no labels"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--out", "{folder}/there.safetensors"], "there.safetensors exists already; add --overwrite"),
        (["--out", "{folder}/labeled"], "labeled is a folder; give a file"),
        (["--out", "{folder}/grays.yaml/f.safetensors"], "cannot be written"),
        (["--out", "{folder}/broken.safetensors"], "broken.safetensors.part cannot be read"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(
    classifying: dict[str, Any], more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.safetensors").write_text("precious")
    (tmp_path / "broken.safetensors.part").write_text("half of it")
    assert estimating(tmp_path, "fisher.safetensors", *(word.replace("{folder}", str(tmp_path)) for word in more)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert (tmp_path / "there.safetensors").read_text() == "precious"


def weighing(values: dict[str, Any], path: Path, name: str = "l2spfisher") -> dict[str, Any]:
    return values | {"regularizer": {"name": name, "alpha": 0.5, "beta": {"half_life": 100}, "fisher": str(path)}}


@pytest.mark.parametrize("name", ["l2spfisher", "glspfisher"])
def test_a_run_that_weighs_with_it_resumes_as_if_uninterrupted_wherever_the_file_lies(
    classifying: dict[str, Any], name: str, train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    assert estimating(tmp_path, "fisher.safetensors", "--examples", "3") == 0
    train(weighing(classifying, tmp_path / "fisher.safetensors", name), tmp_path / "whole")
    train(classifying, tmp_path / "l2sp")
    assert outcome(tmp_path / "l2sp")[0] != outcome(tmp_path / "whole")[0]
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(storage.checkpoints(tmp_path / "resumed/checkpoints")[-1])
    (tmp_path / "resumed/results.json").unlink()
    shutil.move(tmp_path / "fisher.safetensors", tmp_path / "moved.safetensors")
    train(weighing(classifying, tmp_path / "moved.safetensors", name), tmp_path / "resumed", "auto")
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")
    begun = build_network(parse(AnyExperiment, classifying)).anchors
    save_fisher(tmp_path / "other.safetensors", {k: torch.rand_like(v) for k, v in begun.items()}, anchors=begun)
    with pytest.raises(storage.CheckpointError, match=r"was trained with another `regularizer\.fisher`"):
        train(weighing(classifying, tmp_path / "other.safetensors", name), tmp_path / "resumed", "auto")


def test_values_are_brought_to_mean_one_over_the_weights_they_are_used_for(
    classifying: dict[str, Any], tmp_path: Path
) -> None:
    begun = build_network(parse(AnyExperiment, classifying))
    values = {name: torch.rand_like(weight) for name, weight in begun.anchors.items()}
    more = {**values, "head.label.weight": torch.full((3, 3), 1e6)}  # of the source's head
    save_fisher(tmp_path / "f.safetensors", more, anchors={**begun.anchors, "head.label.weight": torch.zeros(3, 3)})
    section = parse(AnyExperiment, weighing(classifying, tmp_path / "f.safetensors")).regularizer
    assert section.name == "l2spfisher"
    strengths = {"backbone": 1.0, "head": 1.0}
    targets = section.build(begun.model, anchors=begun.anchors, alpha=strengths, beta=strengths).targets
    for name, value in mean_one(values).items():
        values = targets[name].fisher
        assert values is not None
        torch.testing.assert_close(values, value)


def another_start(folder: Path, begun: dict[str, torch.Tensor]) -> None:
    weights = load_file(folder / "start.safetensors")
    name = next(iter(begun))
    save_file({**weights, name: weights[name] + 1e-6}, folder / "start.safetensors")


def no_hashes(folder: Path, begun: dict[str, torch.Tensor]) -> None:
    save_fisher(folder / "fisher.safetensors", begun)


def some_weights(folder: Path, begun: dict[str, torch.Tensor]) -> None:
    few = dict(list(begun.items())[1:])
    save_fisher(folder / "fisher.safetensors", few, anchors=few)


def another_file(folder: Path, begun: dict[str, torch.Tensor]) -> None:
    shutil.copy(folder / "start.safetensors", folder / "fisher.safetensors")


def no_file(folder: Path, begun: dict[str, torch.Tensor]) -> None:
    (folder / "fisher.safetensors").unlink()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (another_start, "was estimated at other weights than the branches start from: 1 of "),
        (no_hashes, "does not say at which weights it was estimated; create it with tools/fisher.py"),
        (some_weights, "has no Fisher information of some pretrained weights: 1 of "),
        (another_file, "fisher.safetensors does not hold Fisher information"),
        (no_file, "fisher.safetensors; write it with python tools/fisher.py --config THIS --out "),
    ],
)
def test_a_file_of_other_weights_does_not_hold_these(
    classifying: dict[str, Any],
    mistake: Callable[[Path, dict[str, torch.Tensor]], None],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun = build_network(parse(AnyExperiment, classifying)).anchors
    save_fisher(tmp_path / "fisher.safetensors", {k: torch.ones_like(v) for k, v in begun.items()}, anchors=begun)
    mistake(tmp_path, begun)
    (tmp_path / "grays.yaml").write_text(json.dumps(weighing(classifying, tmp_path / "fisher.safetensors")))
    arguments = ["--config", f"{tmp_path}/grays.yaml", "--run-dir", f"{tmp_path}/run"]
    assert training.main(arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "l2spfisher", "alpha": 1, "beta": 0}, "regularizer.fisher: this required key is missing"),
        (
            {"name": "l2spfisher", "alpha": {"half_life": 9}, "beta": 0, "fisher": "f"},
            "regularizer.alpha: alpha of L2SPFisher has no time constant; give a number",
        ),
        ({"name": "l2spfisher", "alpha": 1, "beta": 0, "fisher": "f", "mode": "decoupled"}, "cannot be decoupled"),
        ({"name": "l2sp", "alpha": 1, "beta": 0, "fisher": "f"}, "regularizer.fisher: unknown key"),
        ({"name": "mars", "alpha": 1, "beta": 0}, "regularizer.radius: this required key is missing"),
        ({"name": "mars", "radius": 0, "beta": 0}, "regularizer.radius: Input should be greater than 0, got 0"),
    ],
)
def test_a_section_that_cannot_be_is_said_when_the_config_is_read(
    classifying: dict[str, Any], section: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse(AnyExperiment, classifying | {"regularizer": section})
    assert said in str(error.value)


def test_a_run_with_mars_keeps_every_channel_within_the_radius_and_resumes(
    classifying: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    classifying["regularizer"] = {"name": "mars", "radius": 0.02, "beta": {"time_constant": 100}}
    train(classifying, tmp_path / "whole")
    begun = build_network(parse(AnyExperiment, classifying)).anchors
    weights = load_file(tmp_path / "whole/weights.safetensors")
    farthest = max(float((weights[n] - w).flatten(1).abs().sum(1).max()) for n, w in begun.items())
    assert farthest == pytest.approx(0.02, rel=1e-3)  # some channel is at the bound, none beyond
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(storage.checkpoints(tmp_path / "resumed/checkpoints")[-1])
    (tmp_path / "resumed/results.json").unlink()
    train(classifying, tmp_path / "resumed", "auto")
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")
    classifying["branches"]["backbone"]["alpha"] = 0.1
    with pytest.raises(ConfigError, match=r"branches\.backbone\.alpha: ignored by regularizer mars, which uses"):
        parse(AnyExperiment, classifying)
