import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from data.catalog.datasets import DATASETS
from data.catalog.download import DownloadError, download, unpack
from data.catalog.verify import find_faults, verify
from mtsp.types import Sample
from tools.prepare_data import main


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` with Range, and closes the connection early as often as `drops` says."""

    files: ClassVar[dict[str, bytes]] = {}
    drops: ClassVar[list[int]] = []  # bytes after which each of the next connections ends
    asked: ClassVar[list[str | None]] = []  # the Range of each request
    etag: ClassVar[str | None] = '"one"'
    honors_range: ClassVar[bool] = True

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if wanted and self.honors_range and self.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.etag:
            self.send_header("ETag", self.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.drops.pop(0) if self.drops else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Server.files, Server.drops, Server.asked, Server.etag, Server.honors_range = {}, [], [], '"one"', True
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(member: tarfile.TarInfo, content: bytes = b"", mode: str = "w:bz2") -> bytes:
    buffer = io.BytesIO()
    member.size = len(content)
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_dropped_connection_is_continued_where_it_broke(site: str, tmp_path: Path) -> None:
    Server.files, Server.drops = {"/a.zip": CONTENT}, [100_000, 50_000]
    seen: list[tuple[int, int | None]] = []
    download(f"{site}/a.zip", tmp_path / "a.zip", checksum=f"md5:{MD5}", progress=lambda *now: seen.append(now))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert Server.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert seen[-1] == (300_000, 300_000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_download_that_was_stopped_is_continued_by_the_next_call(site: str, tmp_path: Path) -> None:
    Server.files = {"/a.zip": CONTENT}

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(f"{site}/a.zip", tmp_path / "a.zip", progress=stop)
    kept = (tmp_path / "a.zip.part").stat().st_size
    assert 0 < kept <= 300_000
    assert not (tmp_path / "a.zip").exists()
    download(f"{site}/a.zip", tmp_path / "a.zip", checksum=f"md5:{MD5}")
    assert Server.asked == [None, f"bytes={kept}-"]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_fetched_anew_and_not_glued_together(site: str, tmp_path: Path) -> None:
    Server.files, Server.drops = {"/a.zip": b"old" * 1000}, [1500] + 5 * [0]
    with pytest.raises(DownloadError, match="1,500 bytes are kept; run again to resume"):
        download(f"{site}/a.zip", tmp_path / "a.zip")
    Server.files, Server.etag = {"/a.zip": CONTENT}, '"two"'
    download(f"{site}/a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_server_that_cannot_continue_is_asked_for_all_of_it(site: str, tmp_path: Path, etag: str | None) -> None:
    Server.files, Server.drops, Server.etag, Server.honors_range = {"/a.zip": CONTENT}, [100], etag, False
    download(f"{site}/a.zip", tmp_path / "a.zip", checksum=f"md5:{MD5}")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_publishes_nothing(site: str, tmp_path: Path) -> None:
    Server.files = {"/a.zip": CONTENT}
    with pytest.raises(DownloadError, match=f"the md5 is {MD5}, expected {'0' * 32}"):
        download(f"{site}/a.zip", tmp_path / "a.zip", checksum=f"md5:{'0' * 32}")
    assert not (tmp_path / "a.zip").exists()
    assert not (tmp_path / "a.zip.part").exists()


def test_a_server_that_refuses_is_named_with_its_answer(site: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/none\.zip: the server answers 404"):
        download(f"{site}/none.zip", tmp_path / "none.zip")
    assert len(Server.asked) == 1  # a refusal is not asked again


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(DownloadError, match="not an http or https address"):
        download((tmp_path / "secret").as_uri(), tmp_path / "copy")


def test_a_disk_that_is_too_small_is_noticed_before_the_bytes_are_fetched(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Server.files = {"/a.zip": CONTENT}
    monkeypatch.setattr("data.catalog.download.shutil.disk_usage", lambda _: type("Usage", (), {"free": 299_999}))
    with pytest.raises(DownloadError, match="are needed on this disk"):
        download(f"{site}/a.zip", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip.part").exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "C:/evil"])
def test_a_member_outside_the_folder_is_refused_before_any_is_written(tmp_path: Path, name: str) -> None:
    for content in (zipped(**{"good": b"1", name: b"2"}), tarred(tarfile.TarInfo(name), b"2")):
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(DownloadError, match="would be unpacked outside"):
            unpack(tmp_path / "archive", tmp_path / "deep" / "new")
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_pipe_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc/passwd"
    (tmp_path / "a.tar").write_bytes(tarred(member))
    with pytest.raises(DownloadError, match="'link' is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "new")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DownloadError, match="'link' is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "new")


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = bytearray(zipped(file=CONTENT))
    whole[1000] ^= 255
    (tmp_path / "a.zip").write_bytes(whole)
    (tmp_path / "b.tar").write_bytes(tarred(tarfile.TarInfo("file"), CONTENT, "w:gz")[:200_000])
    (tmp_path / "c.zip").write_bytes(b"<html>moved</html>")
    for name, problem in (("a.zip", "cannot be unpacked"), ("b.tar", "cannot be unpacked"), ("c.zip", "is neither")):
        with pytest.raises(DownloadError, match=f"{name} {problem}"):
            unpack(tmp_path / name, tmp_path / "new")


def test_the_command_downloads_checks_unpacks_and_does_so_once(site: str, tmp_path: Path) -> None:
    content = zipped(**{"DAVIS/JPEGImages/480p/bear/00000.jpg": b"1", "DAVIS/README.md": b"2"})
    Server.files, Server.drops = {"/DAVIS-data.zip": content}, [100]
    command = ["download", "davis", "--root", str(tmp_path / "DAVIS"), "--url", f"{site}/DAVIS-data.zip"]
    assert main([*command, "--sha256", hashlib.sha256(content).hexdigest()]) == 0
    files = {path.relative_to(tmp_path / "DAVIS").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"JPEGImages/480p/bear/00000.jpg", "README.md", ".downloads/DAVIS-data.zip.done"}
    requests = len(Server.asked)
    assert main(command) == 0
    assert len(Server.asked) == requests == 2


def test_archives_of_one_data_set_are_merged_into_one_folder(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Server.files = {
        "/a.zip": zipped(**{"x/1": b"1"}),
        "/b.tar": tarred(tarfile.TarInfo("x/2"), b"2"),
        "/list.txt": b"3",
    }
    kinds = [DATASETS["kitti"].archives[0]._replace(url=f"{site}/{file}", packed=file != "list.txt") for file in
             ("a.zip", "b.tar", "list.txt")]  # fmt: skip
    monkeypatch.setitem(DATASETS, "kitti", replace(DATASETS["kitti"], archives=tuple(kinds)))
    assert main(["download", "kitti", "--root", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"1", "2"}
    assert (tmp_path / "list.txt").read_bytes() == b"3"


def test_the_published_checksum_is_used_unless_another_is_given(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = DATASETS["davis"]
    archive = row.archives[0]
    assert archive.checksum == "md5:0cb3cf9c5617209fa3cc4794e52a2ffa"
    Server.files = {"/a.zip": zipped(x=b"not the real one")}
    monkeypatch.setitem(DATASETS, "davis", replace(row, archives=(archive._replace(url=f"{site}/a.zip"),)))
    assert main(["download", "davis", "--root", str(tmp_path)]) == 1
    assert "expected 0cb3cf9c5617209fa3cc4794e52a2ffa" in capsys.readouterr().err


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


def test_ctrl_c_ends_with_130_and_keeps_what_was_fetched(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Server.files = {"/a.zip": CONTENT}

    def interrupted(url: str, path: Path, **_: object) -> None:
        def stop(done: int, total: int | None) -> None:
            raise KeyboardInterrupt

        download(url, path, progress=stop)

    monkeypatch.setattr("data.catalog.download.download", interrupted)
    assert main(["download", "davis", "--root", str(tmp_path), "--url", f"{site}/a.zip"]) == 130
    assert (tmp_path / ".downloads/a.zip.part").stat().st_size > 0
    assert "run again: download resumes" in capsys.readouterr().err


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
