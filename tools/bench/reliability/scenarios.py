"""Faults other than signals and kills; see faults.py."""

import argparse
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.bench.reliability.faults import ROOT, Job, Row, alive, environment, is_done, outcome, undisturbed, waited

Scenario = Callable[[Path, str], tuple[str, bool]]
"""Called with the folder and a name for the run; returns what happened, and whether that is what should."""
_SCENARIOS: list[tuple[str, str, Scenario]] = []


def scenario(attack: str, expected: str) -> Callable[[Scenario], Scenario]:
    """Register a scenario."""

    def register(function: Scenario) -> Scenario:
        _SCENARIOS.append((attack, expected, function))
        return function

    return register


def scenarios(out: Path, _: argparse.Namespace) -> Iterator[Row]:
    """Make each fault once."""
    for attack, expected, function in _SCENARIOS:
        if not is_done(out, "scenarios", attack):
            name = function.__name__
            shutil.rmtree(out / "runs" / name, ignore_errors=True)
            happened, passed = function(out, name)
            yield Row(attack, expected, happened, passed)


def ended(job: Job, code: int, *said: str) -> tuple[str, bool]:
    """Return how a job ended, and whether with this code in all processes, these words, one error and no traceback."""
    codes, log = job.codes(), job.said()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    traces = log.count("Traceback (most recent call last)")
    shown = errors[-1] if errors else (log.strip().splitlines() or [""])[-1]
    passed = codes == [code] * job.processes and all(word in log for word in said) and not traces and len(errors) <= 1
    return f"exit {codes}, {traces} tracebacks: {shown[:300]}", passed


def resumed(out: Path, job: Job, *more: str, processes: int = 1) -> tuple[str, bool]:
    """Resume a run; return whether it ended with the bits of one that nobody disturbed."""
    name = job.run_dir.name
    again = Job(out, name, *more, "--resume", "must", processes=processes)
    codes, step = again.codes(), again.saved()
    same = codes == [0] * processes and outcome(job.run_dir) == undisturbed(out, "short", processes=processes)
    return f"{'same bits' if same else 'OTHER BITS'} at step {step} after the resume", same


def both(*results: tuple[str, bool]) -> tuple[str, bool]:
    """Return several results as one."""
    return "; ".join(text for text, _ in results), all(passed for _, passed in results)


def finished(out: Path, name: str, *more: str) -> Job:
    """Return a job that ran to its end, with a checkpoint every two steps."""
    job = Job(out, name, "train.save_every=2", "train.keep_last=4", *more)
    assert job.codes() == [0], job.said()
    return job


def damaged(out: Path, name: str, file: str, damage: Callable[[bytes], bytes], *more: str) -> tuple[str, bool]:
    """Damage a file of the newest checkpoint of a finished run, and resume it from the one before."""
    job = finished(out, name, *more)
    path = job.run_dir / "checkpoints" / "step-00000008" / file
    path.write_bytes(damage(path.read_bytes()))
    before = outcome(job.run_dir)
    again = Job(out, name, "train.save_every=2", "train.keep_last=4", *more, "--resume", "auto")
    text, passed = ended(again, 0, "trying the previous checkpoint")
    same = outcome(job.run_dir) == before
    return f"{text}; {'same bits' if same else 'OTHER BITS'}", passed and same


def flip(content: bytes) -> bytes:
    """Return the content with one bit of its middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


# Checkpoints


@scenario("a bit of model.safetensors flips", "the checkpoint before is used, same bits")
def bit_of_weights(out: Path, name: str) -> tuple[str, bool]:
    """Flip a bit of the weights."""
    return damaged(out, name, "model.safetensors", flip)


@scenario("a bit of manifest.json flips", "the checkpoint before is used, same bits")
def bit_of_manifest(out: Path, name: str) -> tuple[str, bool]:
    """Flip a bit of the manifest."""
    return damaged(out, name, "manifest.json", flip)


@scenario("manifest.json holds 200,000 brackets", "the checkpoint before is used, same bits")
def brackets(out: Path, name: str) -> tuple[str, bool]:
    """Nest the manifest deeper than Python's stack."""
    return damaged(out, name, "manifest.json", lambda content: b"[" * 200_000)


@scenario("ema.pt is cut in half", "the checkpoint before is used, same bits")
def half_average(out: Path, name: str) -> tuple[str, bool]:
    """Truncate the averaged weights."""
    return damaged(out, name, "ema.pt", lambda content: content[: len(content) // 2], "train.ema={decay: 0.9}")


@scenario("all checkpoints are damaged", "refused, nothing starts anew")
def all_damaged(out: Path, name: str) -> tuple[str, bool]:
    """Empty all states."""
    job = finished(out, name)
    for file in job.run_dir.glob("checkpoints/*/state.json"):
        file.write_bytes(b"")
    return ended(Job(out, name, "train.save_every=2", "--resume", "auto"), 1, "all checkpoints in", "are damaged")


@scenario("curves, but no checkpoint, --resume auto", "says that the run starts anew")
def curves_alone(out: Path, name: str) -> tuple[str, bool]:
    """Lose the folder of checkpoints."""
    shutil.rmtree(finished(out, name).run_dir / "checkpoints")
    return ended(Job(out, name, "--resume", "auto"), 0, "THE RUN STARTS ANEW at step 1")


@scenario("curves, but no checkpoint, --resume must", "refused")
def must(out: Path, name: str) -> tuple[str, bool]:
    """Lose the folder of checkpoints, and insist."""
    shutil.rmtree(finished(out, name).run_dir / "checkpoints")
    return ended(Job(out, name, "--resume", "must"), 1, "there is no checkpoint in")


@scenario("the disk is full in a save (async)", "error with the bytes needed; same bits after the resume")
def full_disk(out: Path, name: str) -> tuple[str, bool]:
    """Have a file system with room for one checkpoint."""
    return _full_disk(out, name, "train.async_save=true")


@scenario("the disk is full in a save (blocking)", "error with the bytes needed; same bits after the resume")
def full_disk_blocking(out: Path, name: str) -> tuple[str, bool]:
    """Have a file system with room for one checkpoint, and wait for each save."""
    return _full_disk(out, name, "train.async_save=false")


def _full_disk(out: Path, name: str, how: str) -> tuple[str, bool]:
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)], check=True)
    try:
        (folder / "ballast").write_bytes(bytes(int(2.3 * 2**20)))
        job = Job(out, name, "train.save_every=2", how, "--resume", "auto")
        text, stopped = ended(job, 1, "the disk is full; it needs")
        (folder / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)  # figures and weights come, too
        return both((text, stopped), resumed(out, job, "train.save_every=100"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@scenario("two runs in one folder", "the second is refused, the first goes on")
def two_runs(out: Path, name: str) -> tuple[str, bool]:
    """Start a run where one is running."""
    first = Job(out, name, hold="training")
    first.held()
    refused = ended(Job(out, name, "--resume", "auto"), 1, "is in use by another run")
    first.signal(signal.SIGTERM)
    return both(refused, ended(first, 75), resumed(out, first))


@scenario("a line of the curves is torn", "mended, same bits")
def torn_curves(out: Path, name: str) -> tuple[str, bool]:
    """Cut the last line of the curves, as a power cut does."""
    job = Job(out, name, hold="training")
    job.held()
    job.signal(signal.SIGTERM)
    job.codes()
    with (job.run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "los')
    return resumed(out, job)


@scenario("another learning rate on resume", "refused with the setting")
def other_settings(out: Path, name: str) -> tuple[str, bool]:
    """Change what makes another run."""
    finished(out, name)
    more = ("optimizer.lr=0.02", "--resume", "auto")
    return ended(Job(out, name, *more), 1, "belongs to another experiment", "optimizer.lr: now 0.02, was 0.01")


# Numbers


@scenario("optimizer.lr=1e400", "refused")
def infinite_rate(out: Path, name: str) -> tuple[str, bool]:
    """Give a number that is infinite as a float."""
    return ended(Job(out, name, "optimizer.lr=1e400"), 1, "optimizer.lr: ")


@scenario("optimizer.lr=1e30", "stops before weights that are not finite are saved")
def huge_rate(out: Path, name: str) -> tuple[str, bool]:
    """Destroy the weights with a learning rate that is a number."""
    import torch

    from mtsp.training.checkpoint import storage

    job = Job(out, name, "optimizer.lr=1e30", "regularizer.alpha=0", "regularizer.beta=0", "train.save_every=1")
    text, stopped = ended(job, 1, "not finite")
    weights = [storage.load(path).model for path in storage.checkpoints(job.run_dir / "checkpoints")]
    clean = all(torch.isfinite(tensor).all() for model in weights for tensor in model.values())
    return f"{text}; all {len(weights)} checkpoints are finite: {clean}", stopped and clean


@scenario("optimizer.lr=1e5", "a warning with the samples, or an error")
def spike(out: Path, name: str) -> tuple[str, bool]:
    """Make the loss explode without an overflow."""
    job = Job(out, name, "optimizer.lr=1e5", "regularizer.alpha=0", "regularizer.beta=0", "train.save_every=1")
    job.codes()
    lines = [line for line in job.said().splitlines() if "SPIKE" in line]
    return lines[0] if lines else job.said().splitlines()[-1], bool(lines)


@scenario("an image is truncated", "error with its path")
def corrupt_image(out: Path, name: str) -> tuple[str, bool]:
    """Cut a JPEG in half."""
    data = out / name
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(out / "DAVIS", data)
    image = sorted(data.rglob("*.jpg"))[0]
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    return ended(Job(out, name, f"data.davis.dataset.root={data}"), 1, image.name)


# Processes


@scenario("a data worker is killed", "error with the sample")
def killed_worker(out: Path, name: str) -> tuple[str, bool]:
    """Kill the worker, as the kernel does when memory runs out."""
    job = Job(out, name, "train.workers=1", "train.steps=100000", "evaluation.every=null")
    waited(lambda: job.logged() >= 2)
    for worker in _descendants(job.pids[0]):
        if not _descendants(worker) and "forkserver" in _command(worker):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    return ended(job, 1, "a data worker was ended by SIGKILL; the last that it read is sample ")


@scenario("one of two processes is stopped", "the other gives up after train.timeout, with its stack")
def stopped_rank(out: Path, name: str) -> tuple[str, bool]:
    """Suspend a process for ever."""
    job = Job(out, name, "train.timeout=5", "train.steps=100000", "evaluation.every=null", processes=2)
    waited(lambda: job.logged() >= 2)
    os.kill(job.pids[1], signal.SIGSTOP)
    began = time.monotonic()
    over = waited(lambda: not alive(job.pids[:1]), 60)
    os.kill(job.pids[1], signal.SIGKILL)
    seconds, log = time.monotonic() - began, job.said()
    job.codes()
    passed = over and "another process did not answer within train.timeout" in log and "most recent call first" in log
    return f"ended after {seconds:.0f} s: {log.strip().splitlines()[-1][:200]}", passed and "Traceback" not in log


@scenario("one of two processes is killed", "the other ends, without a traceback")
def killed_rank(out: Path, name: str) -> tuple[str, bool]:
    """Kill a process."""
    job = Job(out, name, "train.steps=100000", "evaluation.every=null", processes=2)
    waited(lambda: job.logged() >= 2)
    os.kill(job.pids[1], signal.SIGKILL)
    codes, log = job.codes(), job.said()
    return f"exit {codes}: {log.strip().splitlines()[-1][:200]}", codes[0] == 1 and "Traceback" not in log


@scenario("a process of torchrun fails", "its error is the last on the screen, once")
def failing_under_torchrun(out: Path, name: str) -> tuple[str, bool]:
    """Raise an error in one of two processes."""
    data = out / "runs" / name / "data"
    shutil.copytree(out / "DAVIS", data)
    image = sorted(data.rglob("*.jpg"))[1]
    image.write_bytes(b"")
    job = Job(out, name, f"data.davis.dataset.root={data}", launcher="torchrun")
    job.codes()
    log = job.said()
    cause = log.rpartition("Root Cause")[2]
    return " ".join(cause.split())[-200:], image.name in cause and log.count("Traceback") == 1  # of torchrun itself


@scenario("torchrun is killed", "its processes save and end")
def killed_torchrun(out: Path, name: str) -> tuple[str, bool]:
    """Kill the launcher alone."""
    job = Job(out, name, launcher="torchrun", hold="training")
    job.held()
    os.kill(job.process.pid, signal.SIGKILL)
    return both(_saved(job), resumed(out, job, processes=2))


@scenario("accelerate launch is killed", "its process saves and ends")
def killed_accelerate(out: Path, name: str) -> tuple[str, bool]:
    """Kill the launcher alone."""
    job = Job(out, name, launcher="accelerate launch", hold="training")
    job.held()
    os.kill(job.process.pid, signal.SIGKILL)
    return both(_saved(job), resumed(out, job))


# Terminals


@scenario("Ctrl-C in a terminal, accelerate launch, steps of 3 s", "saved, exit 75, 0 steps lost")
def ctrl_c(out: Path, name: str) -> tuple[str, bool]:
    """Type Ctrl-C once in an interactive shell."""
    return both(*_in_terminal(out, name, "accelerate launch", lambda terminal: os.write(terminal, b"\x03")))


@scenario("Ctrl-C in a terminal, torchrun, steps of 3 s", "saved, exit 75, 0 steps lost")
def ctrl_c_torchrun(out: Path, name: str) -> tuple[str, bool]:
    """Type Ctrl-C once in an interactive shell, with two processes."""
    return both(*_in_terminal(out, name, "torchrun", lambda terminal: os.write(terminal, b"\x03")))


@scenario("the terminal is closed", "saved, exit 75, 0 steps lost")
def closed_terminal(out: Path, name: str) -> tuple[str, bool]:
    """Close the window of the shell."""
    return both(*_in_terminal(out, name, "python", os.close))


@scenario("Ctrl-C in `train.py 2>&1 | tee log`", "saved, exit 75, 0 steps lost")
def ctrl_c_with_tee(out: Path, name: str) -> tuple[str, bool]:
    """Type Ctrl-C, which ends tee at once."""
    return both(
        *_in_terminal(out, name, "python", lambda terminal: os.write(terminal, b"\x03"), " 2>&1 | tee /dev/null")
    )


def _in_terminal(
    out: Path, name: str, launcher: str, act: Callable[[int], object], rest: str = ""
) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """Start a job in an interactive shell in a pseudo-terminal, act on it while a step is slow, and resume it."""

    class TerminalJob(Job):
        def _launch(self, launcher: str) -> None:
            words = " ".join("'" + word + "'" for word in self.command(launcher))
            pid, self.terminal = pty.fork()
            if not pid:
                os.chdir(ROOT)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` of this program ignores it
                os.execve("/bin/bash", ["bash", "--norc", "-i"], environment())
            os.write(self.terminal, f"{words}{rest}\n".encode())
            self.process: Any = subprocess.Popen(["true"], start_new_session=True)
            self.shell = pid

    job = TerminalJob(out, name, launcher=launcher, hold="training")
    waited(lambda: _drained(job.terminal) and job.held())
    time.sleep(0.5)
    act(job.terminal)
    result = _saved(job)
    with suppress(ProcessLookupError):
        os.kill(job.shell, signal.SIGKILL)
    os.waitpid(job.shell, 0)
    return result, resumed(out, job, processes=job.processes)


def _drained(terminal: int) -> bool:
    os.set_blocking(terminal, False)
    with suppress(OSError):
        while os.read(terminal, 65536):
            pass
    return True


def _saved(job: Job) -> tuple[str, bool]:
    codes = job.codes()
    lost = job.logged() - job.saved()
    return f"exit {codes}, {lost} steps lost", codes == [75] * job.processes and not lost


def _descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [deeper for one in children for deeper in _descendants(one)]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@scenario("from one process to two and back", "agrees with one process to 1e-6")
def elastic(out: Path, name: str) -> tuple[str, bool]:
    """Change the number of processes at steps 3 and 6."""
    from safetensors.torch import load_file

    job = None
    for step, processes in ((3, 1), (6, 2), (8, 1)):
        job = Job(out, name, f"train.steps={step}", "--resume", "auto", processes=processes)
        assert job.codes() == [0] * processes, job.said()
    assert job is not None
    undisturbed(out, "short")
    truth = load_file(out / "runs" / "undisturbed-short-1" / "weights.safetensors")
    found = load_file(job.run_dir / "weights.safetensors")
    worst = max(float((found[key].double() - value.double()).abs().max()) for key, value in truth.items())
    return f"largest difference of a weight: {worst:.1e}", worst < 1e-6


if __name__ == "__main__":
    sys.exit("run tools/bench/reliability/faults.py")
