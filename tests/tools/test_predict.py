"""Files that prediction writes: which, where, of what size, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.augment.crops import center_crop
from data.files.flow_formats.flo import read_flo
from data.files.images import read_image, write_image
from data.files.masks import read_mask
from mtsp.config import parse
from mtsp.evaluation.tta import single_view
from mtsp.files.tensors import write_tensors
from mtsp.types import Outputs
from tools.build import AnyExperiment
from tools.evaluate import main as evaluate
from tools.predict import main
from tools.prediction.network import Look, predict


@pytest.fixture
def arguments(values: dict[str, Any], tmp_path: Path) -> list[str]:
    """A network with random weights, three frames of 48x80 of one video and one frame of another."""
    (tmp_path / "small.yaml").write_text(json.dumps(values))
    torch.manual_seed(1)
    write_tensors(tmp_path / "weights.safetensors", parse(AnyExperiment, values).model.build().state_dict())
    rng = np.random.default_rng(0)
    for name in ("dog/8.png", "dog/9.png", "dog/10.png", "cat/1.png"):
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "frames" / name, rng.integers(0, 256, (48, 80, 3), dtype=np.uint8))
    network = ["--config", str(tmp_path / "small.yaml"), "--checkpoint", str(tmp_path / "weights.safetensors")]
    return [*network, "--frames", str(tmp_path / "frames"), "--out", str(tmp_path / "out")]


def files(out: Path) -> list[str]:
    """Return the files below `out` but the legend of classes, which depends on what is predicted."""
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "overlay_legend.png")


def test_every_frame_has_its_files_and_the_last_of_a_video_no_flow(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--size", "64x96"]) == 0
    masks = [f"{kind}/{name}.png" for kind in ("masks", "overlay") for name in ("dog/8", "dog/9", "dog/10", "cat/1")]
    flows = ["flow/dog/8.flo", "flow/dog/9.flo", "flow_color/dog/8.png", "flow_color/dog/9.png"]
    assert files(tmp_path / "out") == sorted(masks + flows)
    assert read_mask(tmp_path / "out/masks/dog/8.png").shape == (48, 80)
    assert set(np.unique(read_mask(tmp_path / "out/masks/dog/8.png"))) <= {0, 1}
    assert read_flo(tmp_path / "out/flow/dog/9.flo").shape == (48, 80, 2)
    assert read_image(tmp_path / "out/overlay/cat/1.png").shape == (48, 80, 3)
    assert read_image(tmp_path / "out/overlay_legend.png").shape == (24, 480, 3)


def test_only_what_is_asked_for_is_written(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--what", "masks,flow"]) == 0
    assert {name.partition("/")[0] for name in files(tmp_path / "out")} == {"masks", "flow"}


class Moving(nn.Module):
    """Says that all moves by (2, 3) pixels of its own input, and that the left half is class 1."""

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        batch, _, height, width = frame.shape
        flow = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).expand(batch, 2, height, width)
        left = torch.arange(width) < width // 2
        logits = torch.stack([~left, left]).float().view(1, 2, 1, width).expand(batch, 2, height, width)
        return Outputs(flow=flow, mask_logits=logits)


def test_predictions_are_brought_back_to_the_frames_resolution() -> None:
    frame = np.zeros((48, 80, 3), np.uint8)
    found = predict(
        Moving(),
        {"name": "a", "frame": frame, "next_frame": frame},
        Look(single_view, size=(24, 20)),
        torch.device("cpu"),
    )
    assert found.mask is not None
    assert found.flow is not None
    assert found.mask.shape == (48, 80)
    assert found.mask[:, :40].all()
    assert not found.mask[:, 40:].any()
    assert np.array_equal(found.flow, np.broadcast_to(np.array([2 * 80 / 20, 3 * 48 / 24], np.float32), (48, 80, 2)))


def test_files_that_are_there_stay_unless_told_otherwise(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "out/masks/dog/9.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    assert main(arguments) == 1
    assert "1 of the files exist already" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["masks/dog/9.png"]
    assert earlier.read_text() == "earlier"
    assert main([*arguments, "--overwrite"]) == 0
    assert read_mask(earlier).shape == (48, 80)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--frames", "nowhere"], "nowhere: no such folder, image or video"),
        (["--checkpoint", "nowhere"], "no weights at nowhere"),
        (["model.width=16"], "holds another network"),
        (["model.mode=paper", "model.encoder=resnet50"], "holds another network"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_a_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert main([*arguments, *extra]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_flow_of_a_network_without_a_flow_branch_is_refused(
    arguments: list[str], values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = parse(AnyExperiment, values | {"model": values["model"] | {"flow": None}}).model.build()
    write_tensors(tmp_path / "weights.safetensors", model.state_dict())
    arguments = [*arguments, "model.flow=null"]
    assert main([*arguments, "--what", "masks,flow"]) == 1
    assert "--what flow: this network predicts mask_logits only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert {name.partition("/")[0] for name in files(tmp_path / "out")} == {"masks", "overlay"}


SCALES = "evaluation.tta={name: multi_scale, base: 96, crop: 48, scales: [0.5, 1.0]}"


def stored(values: dict[str, Any], folder: Path) -> list[str]:
    """Write the experiment and random weights of its network; return the arguments that name them."""
    (folder / "small.yaml").write_text(json.dumps(values))
    torch.manual_seed(1)
    write_tensors(folder / "weights.safetensors", parse(AnyExperiment, values).model.build().state_dict())
    return ["--config", str(folder / "small.yaml"), "--checkpoint", str(folder / "weights.safetensors")]


@pytest.fixture
def stills(values: dict[str, Any], tmp_path: Path) -> list[str]:
    """A network with random weights that looks at one image, not at pairs."""
    changes = {
        "model": {"name": "encnet", "encoder": "tu-test_efficientnet", "classes": 2, "width": 16, "lateral": False},
        "branches": {"backbone": {}, "head": {}},
        "tasks": {"segmentation": {}},
        "train": {"steps": 1, "stages": [{"steps": 1, "batch_size": {"davis": 2}}], "workers": 0},
        "evaluation": {"data": ["davis_val"]},
    }
    return stored(values | changes, tmp_path)


def test_predicted_are_the_masks_that_are_evaluated(stills: list[str], synthetic: Path, tmp_path: Path) -> None:
    """Looked at over scales and windows, not only whole, which gives other masks."""
    frames = synthetic / "DAVIS" / "JPEGImages" / "480p"
    assert evaluate([*stills, "--save-predictions", str(tmp_path / "saved"), SCALES]) == 0
    assert main([*stills, "--frames", str(frames), "--out", str(tmp_path / "out"), "--what", "masks", SCALES]) == 0
    assert main([*stills, "--frames", str(frames), "--out", str(tmp_path / "whole"), "--what", "masks"]) == 0
    saved = files(tmp_path / "saved/davis_val")
    assert len(saved) == 3
    for name in saved:
        mask = read_mask(tmp_path / "saved/davis_val" / name)
        assert np.array_equal(read_mask(tmp_path / "out/masks" / name), mask)
        assert not np.array_equal(read_mask(tmp_path / "whole/masks" / name), mask)


def test_what_the_view_does_not_give_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--what", "flow", SCALES]) == 1
    said = capsys.readouterr().err
    assert "--what flow: with evaluation.tta `multi_scale` this network predicts mask_logits only" in said
    assert said.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_images_of_any_sizes_and_one_alone_are_taken_by_a_network_without_flow(
    stills: list[str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for name, size in (("a", (48, 80)), ("b", (64, 40))):
        write_image(tmp_path / "photos" / f"{name}.png", np.full((*size, 3), 90, np.uint8))
    out = tmp_path / "out"
    assert main([*stills, "--frames", str(tmp_path / "photos"), "--out", str(out)]) == 0
    assert files(out) == ["masks/a.png", "masks/b.png", "overlay/a.png", "overlay/b.png"]
    assert read_mask(out / "masks/a.png").shape == (48, 80)
    assert read_mask(out / "masks/b.png").shape == (64, 40)
    assert main([*stills, "--frames", str(tmp_path / "photos/b.png"), "--out", str(tmp_path / "one")]) == 0
    assert files(tmp_path / "one") == ["masks/b.png", "overlay/b.png"]
    assert np.array_equal(read_mask(tmp_path / "one/masks/b.png"), read_mask(out / "masks/b.png"))


def test_flow_of_one_image_alone_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [*arguments, "--frames", str(tmp_path / "frames/cat/1.png")]
    assert main([*alone, "--what", "flow"]) == 1
    assert "nothing to write: predicting flow needs at least two frames" in capsys.readouterr().err
    assert main(alone) == 0
    assert files(tmp_path / "out") == ["masks/1.png", "overlay/1.png"]


@pytest.mark.parametrize("here", [True, False])
def test_a_classifier_writes_the_most_probable_classes(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], here: bool
) -> None:
    """Their names come from the data that are evaluated, and are empty where those are not."""
    names = ("red", "green", "blue", "gray", "black", "white")
    rng = np.random.default_rng(0)
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        write_image(tmp_path / "data" / name / "1.png", rng.integers(0, 256, (40, 64, 3), dtype=np.uint8))
    root = str(tmp_path / "data" if here else tmp_path / "elsewhere")
    images = {"dataset": {"name": "image_folder", "root": root}, "size": [32, 32], "crop_pct": 0.875}
    changes = {
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 6},
        "branches": {"backbone": {}, "head": {}},
        "data": {"images": images},
        "tasks": {"classification": {}},
        "train": {"steps": 1, "stages": [{"steps": 1, "batch_size": {"images": 2}}], "workers": 0},
        "evaluation": {"data": ["images"]},
    }
    network = stored(values | changes, tmp_path)
    arguments = [*network, "--frames", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert files(tmp_path / "out") == [*(["classes.txt"] if here else []), "labels.csv"]
    rows = list(csv.DictReader((tmp_path / "out/labels.csv").open()))
    assert [row["name"] for row in rows] == sorted(f"{name}/1" for name in names)
    model = parse(AnyExperiment, values | changes).model.build().eval()
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    image = center_crop(read_image(tmp_path / "data/black/1.png"), (32, 32), 0.875)  # black is the first by name
    with torch.no_grad():
        expected = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)["label_logits"][0].softmax(0)
    best = expected.topk(5)
    called = [sorted(names)[label] if here else f"class {label}" for label in best.indices.tolist()]
    assert [rows[0][key] for key in ("prediction", *(f"prediction_{rank}" for rank in range(2, 6)))] == called
    assert float(rows[0]["probability"]) == pytest.approx(best.values[0].item(), rel=1e-3)
    assert main(arguments) == 1
    assert "labels.csv; add --overwrite to replace them" in capsys.readouterr().err
    assert main([*arguments, "--what", "masks"]) == 1
    assert "--what masks: this network predicts label_logits only" in capsys.readouterr().err
