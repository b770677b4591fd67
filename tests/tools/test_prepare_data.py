"""The program that prepares data sets: mistakes, synthetic data, verification."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.catalog.datasets import DATASETS
from data.catalog.download import DownloadError
from data.catalog.verify import find_faults, verify
from mtsp.types import Sample
from tools.prepare_data import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["download", "davis", "--url", "ftp://x/y.zip"], "ftp://x/y.zip is not an http or https address"),
        (["download", "monkaa", "--only", "finalpas", "--only", "nothing", "--md5", "0"], None),
        (["download", "monkaa", "--md5", "0"], "one checksum for 3 archives"),
        (["download", "monkaa", "--only", "stereo"], "--only stereo matches no archive of monkaa"),
        (["verify", "davis"], None),
        (["verify", "folder"], "'folder' cannot be verified; data sets that can: ade20k, aircraft, "),
        (["synthesize", "davis", "clip=2"], "clip: unknown key; did you mean clips?"),
        (["synthesize", "davis", "objects"], "'objects' must have the form key=value"),
        (["synthesize", "driving", "--clips", "9", "--frames", "2"], "Driving has 8 scenes"),
        (["synthesize", "davis", "--textures", "nowhere"], "no folder nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    words: list[str],
    message: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise DownloadError("no network in tests")

    if words[:3] != ["download", "davis", "--url"]:
        monkeypatch.setattr("data.catalog.download.download", no_network)
    assert main([*words, "--root", str(tmp_path / "root")]) == 1
    captured = capsys.readouterr()
    if words == ["verify", "davis"]:
        assert "no DAVIS" in captured.out
    else:
        lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert (message or "no network in tests") in lines[0]
    assert "Traceback" not in captured.err


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "davis", "--root", "x", "--fast"])
    assert "verify does not accept --fast" in capsys.readouterr().err


SIZE = ["--size", "48x64", "--seed", "3", "objects=[1,2]"]


@pytest.mark.parametrize(
    ("name", "clips", "frames", "examples"),
    [
        ("davis", 3, 3, 9),
        ("flying_chairs", 4, 2, 4),
        ("monkaa", 2, 3, 2 * 2 * 2 * 2 * 2),  # clips x (frames - 1) x passes x directions x cameras
        ("driving", 2, 3, 2 * 2 * 2 * 2 * 2),
    ],
)
def test_what_is_synthesized_is_read_whole_by_the_readers_of_the_real_data(
    name: str, clips: int, frames: int, examples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / name)
    assert main(["synthesize", name, "--root", root, "--clips", str(clips), "--frames", str(frames), *SIZE]) == 0
    assert main(["verify", name, "--root", root, "--partial", "--workers", "1"]) == 0
    assert f"{examples} examples read" in capsys.readouterr().out


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis") / "DAVIS"
    assert main(["synthesize", "davis", "--root", str(root), "--clips", "2", "--frames", "2", *SIZE]) == 0
    return root


def test_several_processes_read_as_well_as_one(davis: Path) -> None:
    report = verify("davis", davis, published=False, workers=2)
    assert (report.counts, report.problems) == ({"train": 2, "val": 2}, [])


def test_the_published_davis_has_50_sequences_and_3455_frames() -> None:
    frames = DATASETS["davis"].sequences
    assert [len(frames[split]) for split in ("train", "val")] == [30, 20]
    assert [sum(frames[split].values()) for split in ("train", "val")] == [2079, 1376]
    assert DATASETS["davis"].splits == {"train": 2079, "val": 1376}


def test_missing_and_additional_sequences_are_each_named(davis: Path) -> None:
    problems = verify("davis", davis).problems
    assert "train: bear has 0 frames, published are 82" in problems
    assert "train: clip-0000 has 2 frames, published are 0" in problems
    assert len(problems) == 52


def test_each_damaged_file_is_named_and_the_rest_is_still_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "chairs"
    assert main(["synthesize", "flying_chairs", "--root", str(root), "--clips", "6", "--frames", "2", *SIZE]) == 0
    data = root / "data"
    os.truncate(data / "00001_flow.flo", 100)
    flow = bytearray((data / "00002_flow.flo").read_bytes())
    flow[12:16] = np.array(np.nan, "<f4").tobytes()
    (data / "00002_flow.flo").write_bytes(flow)
    cv2.imwrite(str(data / "00003_img2.ppm"), np.zeros((10, 10, 3), np.uint8))
    os.truncate(data / "00004_img1.ppm", 50)
    capsys.readouterr()
    assert main(["verify", "flying_chairs", "--root", str(root), "--partial", "--workers", "1"]) == 1
    *problems, total = capsys.readouterr().out.splitlines()
    assert len(problems) == 4
    for name, line in zip(
        ("00001_flow.flo", "00002_flow.flo", "00003_img2.ppm", "00004_img1.ppm"), problems, strict=True
    ):
        assert name in line
    assert total.endswith("6 examples read (train 5, val 1): 4 problems")


def test_a_missing_file_is_a_problem_of_its_split(tmp_path: Path) -> None:
    root = tmp_path / "chairs"
    assert main(["synthesize", "flying_chairs", "--root", str(root), "--clips", "3", *SIZE]) == 0
    (root / "data/00002_img2.ppm").unlink()
    report = verify("flying_chairs", root, published=False)
    assert report.counts == {"train": 0, "val": 1}
    assert len(report.problems) == 1
    assert "00002_img2.ppm" in report.problems[0]


def test_wrong_counts_are_told_with_both_numbers(tmp_path: Path) -> None:
    root = tmp_path / "chairs"
    assert main(["synthesize", "flying_chairs", "--root", str(root), "--clips", "3", *SIZE]) == 0
    assert verify("flying_chairs", root).problems == [
        "train: 2 examples, published are 22,232",
        "val: 1 examples, published are 640",
    ]


def test_odd_values_of_an_example_are_found() -> None:
    frame, flow = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 2), np.float32)
    good = Sample(name="a", frame=frame, mask=np.array([[0, 1, 255, 0, 0]] * 4, np.uint8), flow=flow)
    assert find_faults(good, classes=2) == []
    assert find_faults(Sample(name="a", frame=frame, mask=np.full((4, 5), 7, np.uint8)), classes=2) == [
        "the mask has ids [7], but there are only 2 classes"
    ]
    assert find_faults(Sample(name="a", frame=frame, flow=flow[:3])) == ["flow is 3x5, but the frame is 4x5"]
    assert find_faults(Sample(name="a", frame=frame, flow=np.full_like(flow, np.inf))) == [
        "the flow is NaN or infinite somewhere"
    ]
    assert find_faults(Sample(name="a", frame=frame, flow=flow, flow_valid=np.zeros((4, 5), bool))) == [
        "the flow is known nowhere"
    ]


@pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA does not name the folder of real data")
@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [("davis", "DAVIS", 280), ("flying_chairs", "FlyingChairs_release", 5), ("middlebury", "Middlebury", 5)],
)
def test_the_real_files_at_hand_are_all_well(name: str, folder: str, count: int) -> None:
    report = verify(name, Path(os.environ["MTSP_DATA"]) / folder, published=False)
    assert report.problems == []
    assert sum(report.counts.values()) == count


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cityscapes", "error: cityscapes is for registered users only: get leftImg8bit_trainvaltest.zip"),
        ("stanford_cars", "error: stanford_cars is no longer at its authors' address: get cars_train"),
    ],
)
def test_what_is_fetched_by_hand_is_said_in_a_sentence(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", name, "--root", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(said)
    assert message.count("\n") == 1


def test_a_label_map_is_drawn_without_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "camvid.png"
    assert main(["labels", "camvid", "--out", str(image)]) == 0
    assert capsys.readouterr().out == f"{image}: 11 classes of camvid\n"
    assert image.stat().st_size > 1000
    assert main(["labels", "camvid", "--out", str(image), "spilt=val"]) == 1
    assert "did you mean split" in capsys.readouterr().err
