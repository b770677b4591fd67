"""Loops as machine code: compiled when first called, kept on disk where there is a place, never in the way."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtsp.metrics.kernels import flow_loops, jit
from mtsp.metrics.kernels.confusion_loops import label_kernel, pixel_kernel, plane_kernel


def test_the_compiled_loops_are_used_here() -> None:
    for kernel in (flow_loops._kernel, label_kernel, plane_kernel, pixel_kernel):
        assert kernel() is not None


def test_importing_the_metrics_imports_no_numba() -> None:
    code = "import sys, mtsp, mtsp.metrics; assert 'numba' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_numba_cannot_keep_its_cache_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.dispatcher import Dispatcher

    def refuse(self: Dispatcher) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    loop = jit.compiled(_double)
    assert loop is not None
    assert loop(np.arange(3.0)) == 6


def test_a_disk_that_refuses_the_compiled_code_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import IndexDataCacheFile

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", refuse)
    loop = jit.compiled(_triple)
    assert loop is not None
    assert loop(np.arange(3.0)) == 9


def test_a_damaged_cache_is_compiled_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    values = np.arange(4.0)
    first = jit.compiled(_fourfold)
    assert first is not None
    assert first(values) == 24  # 4 x (0 + 1 + 2 + 3)
    files = [file for file in tmp_path.rglob("*.nb?") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:50])
    second = jit.compiled(_fourfold)
    assert second is not None
    assert second(values) == 24


def test_without_numba_there_is_no_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert jit.compiled(_double) is None


def _double(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += 2 * value
    return total


def _triple(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += 3 * value
    return total


def _fourfold(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += 4 * value
    return total
