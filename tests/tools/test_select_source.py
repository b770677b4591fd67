"""select_source: what it writes, and its messages for mistakes on the command line."""

import csv
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.files.images import write_image
from mtsp.files.progress import progress
from mtsp.transfer.centroids import Centroids
from mtsp.transfer.figure import plain, untangled
from tools.select_source import _ks, _parser, images_at, main, split_name

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


def test_all_files_are_written(source: str, target: str, tmp_path: Path) -> None:
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
    assert summary["2 by greedy"]["emd"] == pytest.approx(0.25)
    assert summary["2 by ranking"]["emd"] >= 0.25
    assert (out / "birds.png").read_bytes().startswith(b"\x89PNG")


def test_the_commands_in_docs_and_help_are_accepted() -> None:
    """As the docs and --help have them, in one line each."""
    page = (Path(__file__).resolve().parents[2] / "docs/recipes/dstl.md").read_text()
    for text in (page, str(_parser().description)):
        commands = [line for line in text.splitlines() if line.strip().startswith("python tools/select_source.py --")]
        assert commands
        for command in commands:
            arguments = _parser().parse_args(shlex.split(command, comments=True)[2:])
            assert _ks(arguments) == [100]


def test_names_in_brackets_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To rich, [/b] ends what never began, and [red] is a color."""
    source = domain(tmp_path / "src.safetensors", {"[red] wolf": (0.0, 5), "[/b]": (9.0, 5)})
    target = domain(tmp_path / "t.safetensors", {"[dim]": (0.0, 1), ":cat:": (9.0, 1)})
    main(["--source", source, "--target", f"[x]={target}", "--k", "2", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    for name in ("for [x]", "to [x]", "[red] wolf", "[/b]", "[dim] 100%", ":cat: 100%"):
        assert name in said


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


def test_classes_with_too_few_images_are_never_selected(source: str, target: str, tmp_path: Path) -> None:
    """All three classes of 5 images are selected; car, with one image, is not among them."""
    main(["--source", source, "--target", target, "--min-images", "2", "--k", "3", "--out", str(tmp_path / "out")])
    assert sorted((tmp_path / "out/classes.txt").read_text().splitlines()[1:]) == ["crow", "duck", "raven"]


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    """What makes a small network of random weights give the features."""
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "net.pth")
    arguments = ["--backbone", "test_efficientnet", "--weights", str(tmp_path / "net.pth"), "--size", "32"]
    return [*arguments, "--out", str(tmp_path / "out"), "--overwrite"]


def images(root: Path, names: list[str]) -> str:
    """Images of noise, each with its own."""
    for seed, name in enumerate(names):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    return str(root)


def test_mistakes_are_found_before_the_features(
    tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = images(tmp_path / "set", ["a/1", "b/1"])
    other = domain(tmp_path / "other.safetensors", {"rook": (0.0, 1)}, features="g")
    given = ["--source", place, *net, "--target"]
    for arguments, message in [
        ([*given, f"same={place}", "--k", "3"], "--k 3: the source has 2 classes"),
        ([*given, f"same={place}", "--k", "1", "--min-images", "2"], "none of 2 classes has 2 images"),
        ([*given, other, "--k", "1"], "cannot be compared"),
    ]:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["#1 pencil", "a\tb", " b", "a\u2028b"])
def test_names_that_a_list_cannot_hold_are_refused(
    name: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = domain(tmp_path / "src.safetensors", {name: (0.0, 1), "b": (9.0, 1)})
    assert main(["--source", source, "--target", target, "--k", "2", "--out", str(tmp_path / "out")]) == 1
    assert re.search(r"class .* cannot be in a list of classes", capsys.readouterr().err)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("gamma", ["nan", "inf", "0", "-1", "x"])
def test_gamma_is_finite_and_above_0(gamma: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--source", "a", "--target", "b", "--k", "1", "--out", "c", f"--gamma={gamma}"])
    assert f"'{gamma}' is not a finite number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "x", ""])
def test_a_number_of_things_is_whole_and_above_0(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--source", "a", "--target", "b", "--k", "1", "--out", "c", f"--batch-size={size}"])
    assert f"'{size}' is not a whole number above 0" in capsys.readouterr().err


def test_the_size_with_the_lowest_distance_is_printed(
    source: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four classes, car, with 1 of 16 images, is 40 from the nearest target, and raven has mass that duck lacks."""
    main(["--source", source, "--target", target, "--k", "4", "--gamma", "2", "--out", str(tmp_path / "out")])
    assert "birds: among k = 1 to 4, the distance is lowest at k = 2 (0.25);" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["birds"]["lowest, at k = 2"]["emd"] == pytest.approx(0.25)
    assert summary["settings"] == {
        "sources": [source],
        "targets": {"birds": [target]},
        "k": {"birds": 4},
        "method": "greedy",
        "min_images": 1,
        "gamma": 2.0,
        "features": "f",
    }


def test_without_a_terminal_a_line_comes_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 1000, one every 4 s: at 12 s and 24 s, all within the first tenth, which is said at once."""
    clock = iter([0, 4, 8, 12, 16, 20, 24])
    monkeypatch.setattr("mtsp.files.progress.time.monotonic", lambda: next(clock))
    with progress("birds", 1000, "images") as advance:
        for done in range(1, 7):
            advance(done)
    assert capsys.readouterr().err.splitlines() == [
        "birds: 1 of 1,000 images, 4 s",
        "birds: 4 of 1,000 images, 16 s",
    ]


def test_images_become_class_means_that_can_be_given_instead(tmp_path: Path, net: list[str]) -> None:
    """Two class folders of noise against themselves: EMD 0. The saved class means give the same, alone or mixed."""
    place = images(tmp_path / "set", ["a/1", "a/2", "b/1"])
    main(["--source", place, "--target", f"same={place}", "--k", "2", *net])
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["same"]["all 2 classes"]["emd"] == 0
    saved = tmp_path / "out/class_means/set.safetensors"
    means = Centroids.load(saved)
    assert (means.names, means.counts.tolist()) == (("a", "b"), [2, 1])
    main(["--source", f"kept={saved}", place, "--target", f"same={saved}", "--k", "4", *net])
    again = json.loads((tmp_path / "out/summary.json").read_text())
    assert again["same"]["all 4 classes"]["emd"] == 0
    assert again["settings"]["features"] == summary["settings"]["features"]


def test_unreadable_images_are_left_out_if_asked(
    tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = images(tmp_path / "set", ["a/1", "a/2", "b/1", "b/2"])
    (tmp_path / "set/a/2.png").write_bytes(b"rubbish")
    arguments = ["--source", place, "--target", f"same={place}", "--k", "2", "--batch-size", "2", *net]
    assert main(arguments) == 1
    assert "a/2.png" in capsys.readouterr().err
    assert main([*arguments, "--skip-unreadable"]) == 0
    said = capsys.readouterr().err
    assert "set: 1 images cannot be read and were skipped: " in said
    assert "a/2.png" in said
    assert Centroids.load(tmp_path / "out/class_means/set.safetensors").counts.tolist() == [1, 2]


def test_a_folder_of_single_images_has_a_class_for_each(tmp_path: Path) -> None:
    for name in ("n02_b", "n01_a"):
        write_image(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    found = images_at(str(tmp_path))
    assert (found.classes, found.targets) == (("n01_a", "n02_b"), [0, 1])


def test_places_are_named_after_what_they_are() -> None:
    assert split_name("cub:/data/CUB") == ("cub", "cub:/data/CUB")
    assert split_name("birds=cub:/data/CUB") == ("birds", "cub:/data/CUB")
    assert split_name("/data/a=b/set") == ("set", "/data/a=b/set")


def test_class_names_are_shown_without_numbers_and_underscores() -> None:
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
    folder = tmp_path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        write_image(folder / name / "1.png", np.zeros((8, 8, 3), np.uint8))
    return folder


def test_mistakes_are_one_line(source: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken(tmp_path)
    (folder / "empty").mkdir()
    other = domain(tmp_path / "other.safetensors", {"rook": (0.0, 1)}, features="g")
    out = tmp_path / "out"
    (tmp_path / "done").mkdir()
    (tmp_path / "done/classes.txt").write_text("")
    given = ["--source", source, "--target", target, "--out", str(out)]
    (tmp_path / "file").write_text("")
    to = ["--target", target, "--out", str(out), "--k", "1"]
    for arguments, message in [
        ([*given, "--k", "5"], "--k 5: the source has 4 classes"),
        (given, "--k is missing; set the number of classes to select"),
        ([*given, "--k", "1", "2"], "--k has 2 numbers for 1 targets"),
        ([*given, "--k", "1", "--min-images", "9"], "none of 4 classes has 9 images"),
        (
            ["--source", source, "--target", other, "--out", str(out), "--k", "1"],
            "cannot be compared: features of src are from f",
        ),
        (
            ["--source", source, source, "--target", target, "--out", str(out), "--k", "1"],
            "two places of one domain are named 'src'; rename one with NAME=PLACE",
        ),
        (["--source", str(tmp_path / "no"), *to], "no folder"),
        (
            ["--source", str(tmp_path / "no.safetensors"), "--target", target, "--out", str(out), "--k", "1"],
            "which should hold class means",
        ),
        (
            ["--source", str(folder), "--target", target, "--out", str(out), "--k", "1"],
            "1 of 3 classes have no images (empty)",
        ),
        (["--source", "davis:/x", *to], "no folder davis:/x"),
        (
            ["--source", source, "--target", target, "--out", str(tmp_path / "done"), "--k", "1"],
            "classes.txt exists; add --overwrite",
        ),
        (["--source", source, "--target", target, "--out", str(tmp_path / "file"), "--k", "1"], "file is a file; name"),
    ]:
        assert main(arguments) == 1, message
        said = capsys.readouterr().err
        assert message in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    assert not out.exists()


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    folder = broken(tmp_path)
    write_image(folder / "loose.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"1 images are outside the class folders, for example loose.png"):
        images_at(str(folder))
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match=r"void"):
        images_at(str(tmp_path / "void"))


@pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="real data: set MTSP_DATA to the folder that holds it")
def test_the_real_subset_of_cub_is_read_as_such() -> None:
    found = images_at(str(Path(os.environ["MTSP_DATA"]) / "CUB_200_2011"))
    assert (len(found), len(found.classes), found.classes[0]) == (600, 20, "001.Black_footed_Albatross")
