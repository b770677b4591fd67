"""What reading a damaged file comes to, counted in processes that may crash, hang or run out of memory."""

import multiprocessing
import resource
import tempfile
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.bench.corruptions.damage import damaged
from tools.bench.corruptions.formats import FORMATS, Format, digest

OUTCOMES = ("equal", "different", "named", "unnamed", "traceback", "crash", "hang", "memory")
_LIMIT, _MOST = 20.0, 1 << 30  # seconds, bytes


def outcome_of(form: Format, path: Path, whole: Any) -> tuple[str, str]:
    """Read a damaged file; return the outcome, and a note about it."""
    try:
        found = digest(form.read(path))
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:  # what programs say in one line
        named = path.name in str(error) or str(path).removesuffix(f"/{form.file}") in str(error)
        return ("named" if named else "unnamed"), f"{type(error).__name__}: {str(error)[:300]}"
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {str(error)[:300]}"
    return ("equal" if found == whole else "different"), ""


def in_processes(form: Format, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Count the outcomes of `count` damaged files, read in a process that is replaced after a crash or a hang.

    Also return a line for each outcome that should not be.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    counts: Counter[str] = Counter()
    examples: list[str] = []
    at = 0
    while at < count:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, FORMATS.index(form), count, seed, at), daemon=True)
        process.start()
        theirs.close()
        assert ours.recv() == "ready", form.name  # EOFError: not even the whole file can be read
        try:
            while at < count:
                outcome, note = ours.recv() if ours.poll(_LIMIT) else ("hang", "")
                counts[outcome] += 1
                if outcome in OUTCOMES[3:] or (outcome == "different" and not form.silent):
                    examples.append(f"{form.name} {at}: {outcome} {note}")
                at += 1
                if outcome == "hang":
                    break
        except EOFError:
            counts["crash"] += 1
            examples.append(f"{form.name} {at}: crash")
            at += 1
        process.kill()
        process.join()
    return counts, examples


def _serve(pipe: Connection, index: int, count: int, seed: int, start: int) -> None:
    warnings.simplefilter("ignore")
    form = FORMATS[index]
    with tempfile.TemporaryDirectory() as folder:
        form.write(Path(folder))
        path = Path(folder) / form.file
        data, whole = path.read_bytes(), digest(form.read(path))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send("ready")
        for place, other in enumerate(damaged(data, count, seed)):
            if place < start:
                continue
            path.write_bytes(other)
            outcome, note = outcome_of(form, path, whole)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if 1024 * (after - before) > _MOST:
                outcome, before = "memory", after
            pipe.send((outcome, note))
