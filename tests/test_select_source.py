"""The program that chooses source classes: what it writes, and what it says of what people get wrong."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.io import write_image
from mtsp.transfer import Centroids
from mtsp.transfer.picture import plain, untangled
from tools.domains import images_at, named
from tools.parts import run_or_say_why
from tools.select_source import main

pytest.importorskip("ot", reason="POT is not installed: pip install mtsp[transfer]")


def domain(path: Path, places: dict[str, tuple[float, int]], features: str = "f") -> str:
    """A domain on a line: class -> (its place, its images)."""
    means = np.array([[place] for place, _ in places.values()])
    Centroids(tuple(places), means, np.array([n for _, n in places.values()]), features).save(path)
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return domain(tmp_path / "src.safetensors", {"crow": (0.0, 5), "raven": (1.0, 5), "duck": (9.5, 5), "car": (50, 1)})


@pytest.fixture
def target(tmp_path: Path) -> str:
    return domain(tmp_path / "birds.safetensors", {"rook": (0.0, 10), "goose": (10.0, 10)})


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_everything_is_written(source: str, target: str, tmp_path: Path) -> None:
    """Chosen: crow (or another at 5), then duck; half the mass moves 0 and half 0.5: EMD 0.25."""
    out = tmp_path / "out"
    assert main(["--source", source, "--target", target, "--k", "2", "--out", str(out)]) == 0
    assert (out / "classes.txt").read_text() == "# 2 classes of src for birds\ncrow\nduck\n"
    rows = read_csv(out / "birds.csv")
    assert [row["class"] for row in rows] == ["crow", "duck"]
    assert [float(row["distance_so_far"]) for row in rows] == pytest.approx([5.0, 0.25])
    assert rows[1]["feeds"] == "goose 100%"
    tensors = load_file(out / "birds_plan.safetensors")
    np.testing.assert_allclose(tensors["plan"], [[0.5, 0], [0, 0.5]], atol=1e-12)
    assert [(row["source"], row["target"], float(row["share"])) for row in read_csv(out / "birds_plan.csv")] == [
        ("crow", "rook", 0.5),
        ("duck", "goose", 0.5),
    ]
    summary = json.loads((out / "summary.json").read_text())["birds"]
    assert summary["2 by greedy growth"]["emd"] == pytest.approx(0.25)
    assert summary["2 by ranking"]["emd"] >= 0.25
    assert (out / "birds.png").read_bytes().startswith(b"\x89PNG")


def test_several_targets_get_a_union_and_several_sources_a_list_each(source: str, tmp_path: Path) -> None:
    more = domain(tmp_path / "more.safetensors", {"swan": (10.0, 5)})
    first = domain(tmp_path / "one.safetensors", {"goose": (10.0, 1)})
    second = domain(tmp_path / "two.safetensors", {"rook": (0.2, 1)})
    out = tmp_path / "out"
    targets = ["--target", first, "--target", second, "--k", "1", "2"]
    main(["--source", source, f"b={more}", *targets, "--method", "ranking", "--out", str(out)])
    names = (out / "classes.txt").read_text().splitlines()[1:]
    assert names == ["b/swan", "src/crow", "src/raven"]
    assert (out / "classes_src.txt").read_text().splitlines()[1:] == ["crow", "raven"]
    assert (out / "classes_b.txt").read_text().splitlines()[1:] == ["swan"]


def test_only_what_is_allowed_is_chosen(source: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("raven\ncar\n")
    arguments = ["--source", source, "--target", target, "--among", str(tmp_path / "list.txt"), "--min-images", "2"]
    main([*arguments, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/classes.txt").read_text().splitlines()[1:] == ["raven"]


def test_pictures_become_features_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two class folders of noise against themselves, seen by a small network of random weights: EMD 0, then cached."""
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "net.pth")
    rng = np.random.default_rng(0)
    for name in ("a/1", "a/2", "b/1"):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    arguments = ["--source", str(tmp_path / "set"), "--target", f"same={tmp_path / 'set'}", "--k", "2"]
    arguments += ["--backbone", "test_efficientnet", "--weights", str(tmp_path / "net.pth"), "--size", "32"]
    arguments += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    main(arguments)
    assert json.loads((tmp_path / "out/summary.json").read_text())["same"]["all 2 classes"]["emd"] == 0
    capsys.readouterr()
    main([*arguments, "--overwrite"])
    assert "class means of 3 pictures from" in capsys.readouterr().err
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_folder_of_single_pictures_has_a_class_for_each(tmp_path: Path) -> None:
    for name in ("n02_b", "n01_a"):
        write_image(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    found = images_at(str(tmp_path))
    assert (found.classes, found.targets) == (("n01_a", "n02_b"), [0, 1])


def test_places_are_named_after_what_they_are() -> None:
    assert named("cub:/data/CUB") == ("cub", "cub:/data/CUB")
    assert named("birds=cub:/data/CUB") == ("birds", "cub:/data/CUB")
    assert named("/data/a=b/set") == ("set", "/data/a=b/set")


def test_names_are_shown_as_people_say_them() -> None:
    assert plain("n01530575_brambling") == "brambling"
    assert plain("012.Yellow_headed_Blackbird") == "Yellow headed Blackbird"
    assert plain("imagenet/n01530575_brambling") == "brambling"


def test_bands_are_untangled() -> None:
    """Three to three, crossed: row 0 feeds column 2, 1 feeds 0, 2 feeds 1. No band crosses if rows follow columns."""
    plan = np.zeros((3, 3))
    plan[[0, 1, 2], [2, 0, 1]] = 1 / 3
    rows, columns = untangled(plan)
    assert np.array_equal(plan[np.ix_(rows, columns)] > 0, np.eye(3, dtype=bool))


def broken(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        write_image(folder / name / "1.png", np.zeros((8, 8, 3), np.uint8))
    return folder


def test_mistakes_are_one_line(source: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken(tmp_path)
    (folder / "empty").mkdir()
    (tmp_path / "list.txt").write_text("crow\nravne\n")
    other = domain(tmp_path / "other.safetensors", {"rook": (0.0, 1)}, features="g")
    out = tmp_path / "out"
    (tmp_path / "done").mkdir()
    (tmp_path / "done/classes.txt").write_text("")
    given = ["--source", source, "--target", target, "--out", str(out)]
    for arguments, message in [
        ([*given, "--k", "5"], "--k 5: the source has 4 classes"),
        ([*given, "--k", "1", "2"], "--k has 2 numbers for 1 targets"),
        ([*given, "--among", str(tmp_path / "list.txt")], "1 of 2 classes are not in the source, the first 'ravne'"),
        ([*given, "--min-images", "9"], "none of 4 classes has 9 images"),
        (["--source", source, "--target", other, "--out", str(out)], "cannot be compared: the features of the first"),
        (["--source", source, source, "--target", target, "--out", str(out)], "are called 'src'; write NAME=PLACE"),
        (["--source", str(tmp_path / "no"), "--target", target, "--out", str(out)], "no folder"),
        (["--source", str(tmp_path / "no.safetensors"), "--target", target, "--out", str(out)], "no class means at"),
        (["--source", str(folder), "--target", target, "--out", str(out)], "1 of 3 classes have no pictures (empty)"),
        (["--source", "davis:/x", "--target", target, "--out", str(out)], "no folder davis:/x"),
        (["--source", source, "--target", target, "--out", str(tmp_path / "done")], "is there already"),
    ]:
        assert run_or_say_why(lambda arguments=arguments: main(arguments)) == 1, message
        said = capsys.readouterr().err
        assert message in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    assert not out.exists()


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    folder = broken(tmp_path)
    write_image(folder / "loose.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"1 pictures lie outside of the classes' folders, the first loose.png"):
        images_at(str(folder))
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match=r"void"):
        images_at(str(tmp_path / "void"))


@pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="real data: set MTSP_DATA to the folder that holds it")
def test_the_real_subset_of_cub_is_read_as_such() -> None:
    found = images_at(str(Path(os.environ["MTSP_DATA"]) / "CUB_200_2011"))
    assert (len(found), len(found.classes), found.classes[0]) == (600, 20, "001.Black_footed_Albatross")
