"""Download archives, resuming interrupted downloads; check them and unpack them safely.

pooch and `torchvision.datasets.utils` restart an interrupted 31 GB download from zero. This module uses urllib with a
Range header and the standard library's zip and tar readers.
"""

import hashlib
import http.client
import json
import lzma
import os
import shutil
import struct
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes so far and the total number of bytes (None if unknown)."""

WORK = ".downloads"
"""Folder inside a data set's root with downloads in progress, and with marks of what is unpacked."""

_CHUNK = 1 << 20
_TIMEOUT = 20.0  # seconds without receiving a byte
_MOST_WAIT = 60  # seconds before another request, if a busy server names a time
# RuntimeError: the zip is encrypted; its subclass NotImplementedError: unknown compression method.
# UnicodeDecodeError: the name of a member.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, UnicodeDecodeError,
)  # fmt: skip
_END: Any = tarfile.EOFHeaderError  # pyright: ignore[reportAttributeAccessIssue]
_HEADER, _TAR_DAMAGED = tarfile.HeaderError, tarfile.ReadError


class DownloadError(ValueError):
    """A file could not be downloaded or unpacked. The message names it and says whether to run again."""


class ArchiveError(DownloadError):
    """A file is not a whole archive, or not one that is safe to unpack."""


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https only; urllib would also follow them to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_web(newurl, f"{req.full_url}: its redirect to ")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_WebRedirects)


def _require_web(url: str, before: str = "") -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{before}{url} is not an http or https address")


def download(
    url: str, path: Path, *, checksum: str | None = None, progress: Progress | None = None, attempts: int = 3
) -> None:
    """Download `url` to `path`, which appears only when it is complete and has the right checksum.

    Until then the bytes are in `<path>.part`. A later call resumes the download if the server still has the same file
    (its ETag or date is stored in `<path>.part.version`), and otherwise starts over.

    Args:
        url: an http or https address.
        path: the file to write; its folder is created if needed. An existing file is only checked.
        checksum: expected checksum, "md5:...", "sha1:..." or "sha256:..."; None: only the length is checked.
        progress: called at least once per megabyte.
        attempts: give up after this many consecutive connections without receiving a byte.

    Raises:
        DownloadError: the server refuses or does not answer, the disk is too small, the checksum is wrong, or the
            server sent a web page instead.
    """
    _require_web(url)
    if path.exists():
        _check(path, checksum, url)
        return
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, part, progress, attempts)
    _check(part, checksum, url)
    if checksum is None:
        _require_no_page(part, url)
    os.replace(part, path)
    _version(part).unlink(missing_ok=True)


def require_space(folder: Path, needed: int) -> None:
    """Raise DownloadError unless `needed` bytes are free on the disk of the existing `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(f"{folder}: {needed / 1e9:.1f} GB are needed on this disk, {free / 1e9:.1f} GB are free")


def unpack(archive: Path, folder: Path, *, strip: str | None = None, progress: Progress | None = None) -> None:
    """Unpack a zip or tar archive (gz, bz2, xz or uncompressed) into `folder`; only regular files are unpacked.

    Args:
        archive: the archive file, recognized by its content, not its name.
        folder: the folder to create; it is replaced if it exists, for example after an interrupted call.
        strip: top folder of the archive to strip from the paths.
        progress: called at least once per megabyte, with numbers of bytes of the archive.

    Raises:
        DownloadError: the file is not an archive, is damaged, or needs more space than is free; or a member is a link
            or device, or would be unpacked outside `folder`. Members unpacked before the error stay in `folder`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, strip, progress)
        elif tarfile.is_tarfile(archive):
            _untar(archive, folder, strip, progress)
        else:
            raise ArchiveError(f"{archive} is neither a zip nor a tar archive")
    except _DAMAGED as error:
        raise ArchiveError(f"{archive} cannot be unpacked: {error}") from error
    except OSError as error:
        raise DownloadError(f"{archive} cannot be unpacked: {error}") from error


def _fetch(url: str, part: Path, progress: Progress | None, attempts: int) -> None:
    failures, most = 0, _size(part)
    while True:
        wait = ""
        try:
            if _continue(url, part, progress):
                return
            reason = "the connection was closed early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                reason = " ".join(str(error.reason).split())  # of a redirect that leads in a circle, three lines
                raise DownloadError(f"{url}: the server answers {error.code} {reason}") from error
            wait = error.headers.get("Retry-After", "")
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
        except OSError as error:
            raise DownloadError(f"{url}: {part} cannot be written: {error.strerror}; run again to resume") from error
        except DownloadError:
            raise
        except ValueError as error:  # of a redirect's address
            raise DownloadError(f"{url}: the server's answer cannot be read: {error}") from error
        failures = 0 if _size(part) > most else failures + 1  # a server that always starts over gets no nearer
        most = max(most, _size(part))
        if failures >= attempts:
            raise DownloadError(f"{url}: {reason}; {_size(part):,} bytes are kept; run again to resume")
        time.sleep(min(int(wait), _MOST_WAIT) if wait.isdecimal() else 0)


def _continue(url: str, part: Path, progress: Progress | None) -> bool:
    """Request the missing bytes of `part` and append them; return whether `part` is complete now."""
    start, known = _size(part), _stored_version(part)
    headers = {"User-Agent": "mtsp", "Accept-Encoding": "identity"}
    validator = known.get("ETag") or known.get("Last-Modified")
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = _OPENER.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # 416: the file has no bytes after `start`. Either `part` is complete, or the file has become shorter.
        if error.code != 416:
            raise
        if start and error.headers.get("Content-Range", "").rpartition("/")[2] == str(start):
            return True
        part.unlink(missing_ok=True)
        return False
    with response:
        span = response.headers.get("Content-Range", "")
        if response.status != 206:
            start = 0
        elif not span.startswith(f"bytes {start}-"):
            raise DownloadError(f"{url}: the server was asked for bytes {start}- and sends {span!r}; delete {part}")
        _require_plain(response.headers.get("Content-Encoding", "identity"), url)
        total = _total(start, span, response.headers.get("Content-Length", ""))
        version = {key: response.headers[key] for key in ("ETag", "Last-Modified") if response.headers.get(key)}
        version = {key: text for key, text in version.items() if not text.startswith("W/")}
        if total is not None:
            version["total"] = str(total)
        if start and any(known[key] != version[key] for key in known.keys() & version.keys()):
            part.unlink()  # the server sends the rest of another file: start over
            _version(part).unlink()
            return False
        _version(part).write_text(json.dumps(version), encoding="utf-8")
        try:
            require_space(part.parent, 0 if total is None else total - start)
        except DownloadError as error:
            raise DownloadError(f"{url}: {error}") from error
        with part.open("ab" if start else "wb") as file:
            while chunk := response.read1(_CHUNK):
                file.write(chunk)
                start += len(chunk)
                if progress is not None:
                    progress(start, total)
    return total is None or _size(part) == total


def _total(start: int, span: str, length: str) -> int | None:
    """Return the size of the whole file; None if the server does not tell. A 206 may end before the file does."""
    size = span.rpartition("/")[2]
    if size.isdecimal():
        return int(size)
    return start + int(length) if length.isdecimal() else None


def _require_plain(encoding: str, url: str) -> None:
    """Raise DownloadError if the server compressed the file on its way; the bytes of a .gz may be called so, too."""
    if encoding.lower() != "identity" and not urllib.parse.urlsplit(url).path.endswith(("gz", "bz2", "xz")):
        raise DownloadError(f"{url}: the server sends the file compressed ({encoding}) though it was asked not to")


def _require_no_page(path: Path, url: str) -> None:
    """Raise DownloadError and delete the file if it is empty, or a web page, which servers send instead of a file."""
    with path.open("rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    page = start.startswith(b"<") and (b"<!doctype html" in start or b"<html" in start)
    if not start or (page and not url.endswith((".html", ".htm"))):
        path.unlink()
        sent = "a web page" if page else "nothing"
        raise DownloadError(f"{url}: the server sent {sent} instead of the file; look at it in a browser")


def _check(path: Path, checksum: str | None, url: str) -> None:
    """Raise DownloadError and delete the file unless it has this checksum."""
    if checksum is None:
        return
    kind, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected.lower():
        path.unlink()
        raise DownloadError(f"{url}: the {kind} is {found}, expected {expected}; deleted, run again to start over")


def _unzip(archive: Path, folder: Path, strip: str | None, progress: Progress | None) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        _require_directory(archive, members)
        targets = [_target(archive, folder, member.filename, strip) for member in members]  # before any is written
        for member in members:
            kind = (member.external_attr >> 28) & 0xF  # file type in the Unix mode; 0 if there is none
            if kind not in (0, 0x4, 0x8):
                raise ArchiveError(f"{archive}: {member.filename!r} is a link or a device, only files are unpacked")
        require_space(folder, sum(member.file_size for member in members))
        done, total = 0, sum(member.compress_size for member in members)
        for member, target in zip(members, targets, strict=True):
            if not member.is_dir():
                with opened.open(member) as source:
                    _write(source, target)
            done += member.compress_size
            if progress is not None:
                progress(done, total)


def _require_directory(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise BadZipFile if the directory at the end of a zip, which zipfile trusts, disagrees with the rest of it."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - (1 << 16) - 22))
        end = file.read().rpartition(b"PK\x05\x06")[2]
        total = int.from_bytes(end[6:8], "little")
        if total not in (len(members), 0xFFFF):  # 0xFFFF: the number is in a record of its own
            raise zipfile.BadZipFile(f"its directory has {len(members)} entries, not {total}")
        for member in members:
            file.seek(member.header_offset)
            flags, *found = struct.unpack("<6xH6x3L4x", file.read(30).ljust(30, b"\0"))
            told = [member.CRC, member.compress_size, member.file_size]
            if not flags & 8 and found != told and 0xFFFFFFFF not in found:  # 8: the numbers follow the content
                raise zipfile.BadZipFile(f"its directory and {member.filename!r} itself disagree")


def _untar(archive: Path, folder: Path, strip: str | None, progress: Progress | None) -> None:
    total = archive.stat().st_size
    require_space(folder, total)
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*", tarinfo=_StrictMember) as opened:
        for member in opened:
            target = _target(archive, folder, member.name, strip)
            if member.isfile():
                source = opened.extractfile(member)
                assert source is not None
                with source:
                    _write(source, target)
            elif not member.isdir():
                raise ArchiveError(f"{archive}: {member.name!r} is a link or a device, only files are unpacked")
            if progress is not None:
                progress(raw.tell(), total)
        while opened.fileobj is not None and opened.fileobj.read(_CHUNK):
            pass  # to the end, where gzip and others keep a checksum


class _StrictMember(tarfile.TarInfo):
    """A member of a tar archive. tarfile takes a damaged or missing header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _HEADER as error:
            raise _TAR_DAMAGED(f"a header is damaged or missing: {error}") from error


def _target(archive: Path, folder: Path, name: str, strip: str | None) -> Path:
    """Return the path to unpack a member to. Raises DownloadError unless it is inside `folder`."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or any(bad in name for bad in "\\\0") or (parts and ":" in parts[0]):
        raise ArchiveError(f"{archive}: {name!r} would be unpacked outside {folder}; the archive is refused")
    if strip is not None and parts[:1] == (strip,):
        parts = parts[1:]
    if parts[:1] == (WORK,):
        raise ArchiveError(f"{archive}: {name!r} is in the folder of the downloads themselves; the archive is refused")
    return folder.joinpath(*parts)


def _write(source: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _stored_version(part: Path) -> dict[str, str]:
    """Return what the server said of the file that `part` is the beginning of: ETag, Last-Modified, total."""
    try:
        known = json.loads(_version(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(text, str) for text in known.values()) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
