"""Predictions on video files, and movies of them."""

import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from data.files.images import write_image
from data.files.movies import MovieWriter, open_movie
from tools.predict import main
from tools.prediction.frames import frames_of

TIMES = [Fraction(0), Fraction(1, 24), Fraction(3, 24), Fraction(1, 2), Fraction(3, 2)]  # a varying frame rate


def gray(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five frames, the left half dark, that become brighter."""
    with MovieWriter(tmp_path / "clip.mp4") as writer:
        for index, time in enumerate(TIMES):
            image = gray(40 * index + 20)
            image[:, :32] = 0
            writer.add(time, image)
    return tmp_path / "clip.mp4"


def test_frames_come_in_pairs_with_their_own_times(video: Path) -> None:
    found = list(frames_of(video).pairs)
    assert [raw["name"] for _, raw in found] == [f"clip/{index:05d}" for index in range(5)]
    assert [float(time) for time, _ in found] == pytest.approx([float(time) for time in TIMES], abs=1e-4)
    assert [raw["frame"][24, 60].mean() for _, raw in found] == pytest.approx([20, 60, 100, 140, 180], abs=4)
    for (_, raw), (_, after) in pairwise(found):
        assert np.array_equal(raw.get("next_frame", 0), after["frame"])
    assert "next_frame" not in found[-1][1]


def test_a_movie_plays_as_long_as_the_video(small_network: list[str], video: Path, tmp_path: Path) -> None:
    command = [*small_network, "--video", str(video), "--out", str(tmp_path / "out"), "--movie"]
    assert main(command) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["clip.mp4"]
    with av.open(str(tmp_path / "out/movie/clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(1.5 + 1 / 30, abs=0.01)  # the last frame: 1/30 s
    frames = list(open_movie(tmp_path / "out/movie/clip.mp4").frames)
    assert [float(time) for time, _ in frames] == pytest.approx([float(time) for time in TIMES], abs=1e-4)
    assert {image.shape for _, image in frames} == {(48 + 24, 3 * 64, 3)}  # frame, mask, flow; the scale of flow
    assert frames[2][1][24, 60].mean() == pytest.approx(100, abs=4)
    assert main(command) == 1  # refuses to overwrite it


def test_a_turned_video_is_read_as_players_show_it(video: Path, tmp_path: Path) -> None:
    """The matrix in the track's header, which phones set, says: turn by 90 degrees clockwise."""
    data = video.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(data[:place] + matrix + data[place + 36 :])
    frame = next(open_movie(tmp_path / "turned.mp4").frames)[1]
    assert frame.shape == (64, 48, 3)
    assert frame[10].mean() < 5  # what was dark at the left is at the top
    assert frame[50].mean() > 15


def test_each_folder_of_frames_has_a_movie(small_network: list[str], tmp_path: Path) -> None:
    for name in ("dog/1.png", "dog/2.png", "cat/1.png"):
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "frames" / name, gray(100))
    out = tmp_path / "out"
    assert (
        main([*small_network, "--frames", str(tmp_path / "frames"), "--out", str(out), "--movie", "--what", "masks"])
        == 0
    )
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"movie/dog.mp4", "movie/cat.mp4", "masks/dog/1.png", "masks/dog/2.png", "masks/cat/1.png"}
    times = [time for time, _ in open_movie(out / "movie/dog.mp4").frames]
    assert [float(time) for time in times] == pytest.approx([0, 1 / 24], abs=1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_movie_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with MovieWriter(tmp_path / "movie.mp4") as writer:
            writer.add(Fraction(0), gray(3))
            raise error

    with pytest.raises(error):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_damaged_video_keeps_no_movie_and_says_where_it_ends(
    small_network: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert main([*small_network, "--video", str(tmp_path / "text.mp4"), "--out", str(tmp_path / "out"), "--movie"]) == 1
    assert "text.mp4 is no image and no video; --video takes a video" in capsys.readouterr().err
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:400])
    assert main([*small_network, "--video", str(tmp_path / "half.mp4"), "--out", str(tmp_path / "out"), "--movie"]) == 1
    assert "half.mp4: cannot " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_video_without_pyav_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\0no video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"clip.mp4: reading a video needs PyAV: pip install mtsp\[video\]"):
        frames_of(tmp_path / "clip.mp4")
