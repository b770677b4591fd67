"""Downloads from a server that drops connections, changes files, redirects and lies; archives that are hostile."""

import hashlib
import http.server
import inspect
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from data.catalog import download as catalog
from data.catalog.datasets import DATASETS
from data.catalog.download import DownloadError, download, unpack
from tools.prepare_data import main


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` with Range, and closes the connection early as often as `drops` says."""

    files: ClassVar[dict[str, bytes]] = {}
    drops: ClassVar[list[int]] = []  # bytes after which each of the next connections ends
    asked: ClassVar[list[str | None]] = []  # the Range of each request
    redirects: ClassVar[dict[str, str]] = {}
    etag: ClassVar[str | None] = '"one"'
    date: ClassVar[str | None] = None
    heeds_if_range: ClassVar[bool] = True
    honors_range: ClassVar[bool] = True

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
            self.end_headers()
            return
        if content is None:
            self.send_error(404)
            return
        start = 0
        same = self.headers.get("If-Range") in (self.etag, self.date) or not self.heeds_if_range
        if wanted and self.honors_range and same:
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
        if self.date:
            self.send_header("Last-Modified", self.date)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.drops.pop(0) if self.drops else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Server.files, Server.drops, Server.asked, Server.redirects = {}, [], [], {}
    Server.etag, Server.date, Server.honors_range, Server.heeds_if_range = '"one"', None, True, True
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


@pytest.mark.parametrize("changed", ["etag", "date", "length"])
def test_the_rest_of_another_file_is_not_joined_with_the_old_half(site: str, tmp_path: Path, changed: str) -> None:
    """This server answers a Range with 206 whatever If-Range says, as some do."""
    Server.heeds_if_range, Server.date = False, "Mon, 01 Jan 2024 00:00:00 GMT"
    Server.files, Server.drops = {"/a.zip": b"o" * 3000}, [1500, 0, 0, 0]
    with pytest.raises(DownloadError, match="1,500 bytes are kept"):
        download(f"{site}/a.zip", tmp_path / "a.zip")
    if changed == "etag":
        Server.etag = '"two"'
    elif changed == "date":
        Server.date = "Tue, 02 Jan 2024 00:00:00 GMT"
    Server.files = {"/a.zip": b"n" * (4000 if changed == "length" else 3000)}
    download(f"{site}/a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == Server.files["/a.zip"]


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


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>moved", b"\xef\xbb\xbf\n<!-- --><HTML>not found"])
def test_a_web_page_in_place_of_a_file_is_refused(site: str, tmp_path: Path, page: bytes) -> None:
    Server.files = {"/setid.mat": page}
    with pytest.raises(DownloadError, match=rf"{site}/setid\.mat: the server sent a web page"):
        download(f"{site}/setid.mat", tmp_path / "setid.mat")
    assert not any((tmp_path / name).exists() for name in ("setid.mat", "setid.mat.part"))
    Server.files = {"/setid.mat": b"the real one"}
    download(f"{site}/setid.mat", tmp_path / "setid.mat")
    assert (tmp_path / "setid.mat").read_bytes() == b"the real one"


def answers(monkeypatch: pytest.MonkeyPatch, *replies: tuple[int, dict[str, str], bytes]) -> list[str | None]:
    """Make the server send these replies, one per request, the last one again and again; return the Ranges asked."""
    left = list(replies)

    def answer(self: Server) -> None:
        self.asked.append(self.headers.get("Range"))
        status, headers, content = left.pop(0) if len(left) > 1 else left[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    monkeypatch.setattr(Server, "do_GET", answer)
    return Server.asked


def test_a_server_that_starts_over_for_ever_is_given_up(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (200, {"Content-Length": "100", "ETag": '"one"'}, b"x" * 10)
    other = (206, {"Content-Range": "bytes 10-29/30", "Content-Length": "20", "ETag": '"two"'}, b"y" * 20)
    asked = answers(monkeypatch, *(20 * [first, other]))
    with pytest.raises(DownloadError, match="the connection was closed early; 0 bytes are kept"):
        download(f"{site}/a.csv", tmp_path / "a.csv")
    assert asked == [None, "bytes=10-", None, "bytes=10-"]  # 10 bytes are progress once


def test_a_server_that_sends_pieces_is_asked_for_the_next_piece(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (200, {"Content-Length": "30", "ETag": '"one"'}, b"a" * 10)
    pieces = [
        (206, {"Content-Range": f"bytes {at}-{at + 9}/30", "Content-Length": "10", "ETag": '"one"'}, text * 10)
        for at, text in ((10, b"b"), (20, b"c"))
    ]
    answers(monkeypatch, head, *pieces)
    download(f"{site}/a.csv", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"a" * 10 + b"b" * 10 + b"c" * 10


@pytest.mark.parametrize(
    ("status", "headers", "content", "said"),
    [
        (206, {"Content-Range": "bytes 7-9/10"}, b"789", "sends 'bytes 7-9/10'"),
        (416, {}, b"", "the connection was closed early; 0 bytes"),
        (302, {"Location": "http://[bad/"}, b"", "the server's answer cannot be read: Invalid IPv6 URL"),
        (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b", r"the file compressed \(gzip\)"),
        (200, {"Content-Length": "0"}, b"", "sent nothing instead of the file"),
    ],
)
def test_a_server_that_misbehaves_is_named(
    site: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    content: bytes,
    said: str,
) -> None:
    answers(monkeypatch, (status, headers, content))
    with pytest.raises(DownloadError, match=f"^{site}/a.csv: .*{said}"):
        download(f"{site}/a.csv", tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


def test_a_busy_server_is_asked_again_at_the_time_that_it_names_but_not_later_than_a_minute(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(catalog.time, "sleep", waits.append)
    busy = [(503, {"Retry-After": "7"}, b""), (429, {"Retry-After": "3600"}, b"")]
    answers(monkeypatch, *busy, (200, {"Content-Length": "2"}, b"ok"))
    download(f"{site}/a.csv", tmp_path / "a.csv")
    assert waits == [7, 60]


def test_a_disk_that_fills_up_is_named_with_the_address(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, (200, {}, b"x"))  # no length, so the space cannot be checked before
    (tmp_path / "a.csv.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=f"^{site}/a.csv: .*a.csv.part cannot be written: No space left"):
        download(f"{site}/a.csv", tmp_path / "a.csv")


def test_redirects_lead_to_web_addresses_only(site: str, tmp_path: Path) -> None:
    Server.files, Server.redirects = {"/a.zip": CONTENT}, {"/moved.zip": f"{site}/a.zip", "/gone.zip": "ftp://x/a.zip"}
    download(f"{site}/moved.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=rf"{site}/gone\.zip: its redirect to ftp://x/a\.zip is not an http"):
        download(f"{site}/gone.zip", tmp_path / "b.zip")


def test_a_silent_server_is_given_up_after_a_minute() -> None:
    assert inspect.signature(download).parameters["attempts"].default * catalog._TIMEOUT == 60


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


def test_damage_that_zipfile_and_tarfile_pass_over_is_refused(tmp_path: Path) -> None:
    whole = zipped(a=b"a" * 900, b=b"b" * 900)
    entry = whole.index(b"PK\x01\x02")
    empty = whole[: entry + 16] + bytes(12) + whole[entry + 28 :]  # the directory says that a is empty
    end = whole.index(b"PK\x05\x06")
    none = whole[: end + 12] + bytes(4) + whole[end + 16 :]  # it says that it is empty itself
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in "ab":
            member = tarfile.TarInfo(name)
            member.size = 900
            archive.addfile(member, io.BytesIO(b"1" * 900))
    tar = bytearray(plain.getvalue())
    tar[1536] ^= 1  # the name of b
    for content in (empty, none, bytes(tar)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(DownloadError, match="a cannot be unpacked: "):
            unpack(tmp_path / "a", tmp_path / "new")


def test_the_command_downloads_checks_unpacks_and_does_so_once(site: str, tmp_path: Path) -> None:
    content = zipped(**{"DAVIS/JPEGImages/480p/bear/00000.jpg": b"1", "DAVIS/README.md": b"2"})
    Server.files, Server.drops = {"/DAVIS-data.zip": content}, [100]
    command = ["download", "davis", "--root", str(tmp_path / "DAVIS"), "--url", f"{site}/DAVIS-data.zip"]
    assert main([*command, "--sha256", hashlib.sha256(content).hexdigest()]) == 0
    files = {path.relative_to(tmp_path / "DAVIS").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    name = hashlib.sha256(f"{site}/DAVIS-data.zip".encode()).hexdigest()[:8]
    assert files == {"JPEGImages/480p/bear/00000.jpg", "README.md", f".downloads/{name}-DAVIS-data.zip.done"}
    requests = len(Server.asked)
    assert main(command) == 0
    assert len(Server.asked) == requests == 2


def test_a_damaged_archive_is_fetched_anew_by_the_next_call(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = zipped(**{"DAVIS/README.md": b"2" * 5000})
    command = ["download", "davis", "--root", str(tmp_path), "--url", f"{site}/DAVIS-data.zip"]
    for content in (whole[:-30], b"no archive at all"):
        Server.files = {"/DAVIS-data.zip": content}
        assert main(command) == 1
        assert f"error: {site}/DAVIS-data.zip: " in (said := capsys.readouterr().err)
        assert "deleted, run again to fetch it anew" in said
    Server.files = {"/DAVIS-data.zip": whole}
    assert main(command) == 0
    assert (tmp_path / "README.md").read_bytes() == b"2" * 5000


def test_another_address_with_the_same_file_name_is_another_file(site: str, tmp_path: Path) -> None:
    Server.files = {"/old/a.zip": zipped(x=b"old"), "/new/a.zip": zipped(x=b"new")}
    for which in ("old", "new"):
        command = ["download", "davis", "--root", str(tmp_path), "--url", f"{site}/{which}/a.zip", "--keep-archives"]
        assert main(command) == 0
        assert (tmp_path / "x").read_bytes() == which.encode()


def test_an_archive_cannot_say_that_others_are_unpacked(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Server.files = {"/a.zip": zipped(**{".downloads/0-b.zip.done": b""})}
    assert main(["download", "davis", "--root", str(tmp_path), "--url", f"{site}/a.zip"]) == 1
    assert "'.downloads/0-b.zip.done' is in the folder of the downloads themselves" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.done")) == []


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
    assert next((tmp_path / ".downloads").glob("*-a.zip.part")).stat().st_size > 0
    assert "run again: download resumes" in capsys.readouterr().err
