"""Attack training runs of a tiny network, and show what became of each attack.

    python tools/bench/reliability/faults.py {signals,kills,scenarios,tracker,saving} [--out runs/faults]

`signals` sends signals to all processes of a job under three launchers, while it trains, evaluates and saves. `kills`
kills runs at random moments. `scenarios` are other faults. After these, the run is resumed, and must end with the same
bits as a run that nobody disturbed. `tracker` measures what a tracker without a server costs, and `saving` what
checkpoints cost. Results are appended to `OUT/NAME.jsonl`, and the same command continues where it stopped.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # before installed packages called tools, models or data

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0
"""Seconds after which a job that should have ended hangs."""
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
LAUNCHERS = {"python": 1, "accelerate launch": 1, "torchrun": 2}
"""Number of processes under each launcher."""


class Row(NamedTuple):
    """A line of the table."""

    attack: str
    expected: str
    happened: str
    passed: bool


# The runs


def prepare(out: Path) -> None:
    """Write the data and the config of the tiny run, unless they exist."""
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.writers import write_davis, write_flying_chairs

    out.mkdir(parents=True, exist_ok=True)
    clips = SyntheticConfig(clips=4, frames=3, height=64, width=96, objects=(1, 2))
    for name, write in (("DAVIS", write_davis), ("chairs", write_flying_chairs)):
        if not (out / name).exists():
            write(clips, out / name, validation=0.25)
    davis, chairs = (
        {"name": "davis", "root": str(out / "DAVIS")},
        {"name": "flying_chairs", "root": str(out / "chairs")},
    )
    config = {
        "name": "faults",
        "model": {
            "name": "segflow",
            "encoder": "tu-test_convnext",
            "width": 8,
            "flow_width": 8,
            "flow": {"width": 0.04},
        },
        "branches": {"segmentation": {}, "flow": {}},
        "data": {
            "davis": {"dataset": davis, "augment": {"preset": "segflow", "resize": [64, 96]}},
            "chairs": {"dataset": chairs},
            "davis_val": {"dataset": davis | {"split": "val"}},
        },
        "tasks": {"segmentation": {}, "flow": {"weight": 0.1}},
        "regularizer": {"name": "l2", "alpha": 0.001, "beta": 0.001},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {
            "steps": 8,
            "stages": [
                {"steps": 2, "batch_size": {"davis": 2}, "learn": ["segmentation"]},
                {"steps": 2, "batch_size": {"davis": 2, "chairs": 2}},
            ],
            "workers": 0,
            "save_every": 1000,
        },
        "evaluation": {"data": ["davis_val"], "every": 4, "at_start": False},
        "tracking": {"log_every": 1, "images": 0},
    }
    (out / "faults.yaml").write_text(json.dumps(config, indent=1))


class Job:
    """A training run in processes of its own: forked here, or started by a launcher.

    `hold` names what to slow down: "training" (step 6), "evaluation" or "saving"; :meth:`held` waits until then.
    `variables` are added to the environment of a forked run.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        *more: str,
        launcher: str | None = None,
        processes: int = 1,
        hold: str = "",
        variables: Mapping[str, str] | None = None,
    ):
        self.run_dir = out / "runs" / name
        self.log = out / "logs" / name
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self.processes = LAUNCHERS.get(launcher or "", processes)
        self._codes = [self.log.with_suffix(f".{rank}.code") for rank in range(self.processes)]
        self._held = self.log.with_suffix(".held")
        for file in (*self._codes, self._held):
            file.unlink(missing_ok=True)
        self.spec = json.dumps({"codes": [str(code) for code in self._codes], "hold": hold, "held": str(self._held)})
        self.arguments = ["--config", str(out / "faults.yaml"), "--run-dir", str(self.run_dir), *more]
        self._children: list[Any] = []
        self._variables = dict(variables or {})
        if launcher is None:
            self._fork()
        else:
            self._launch(launcher)

    def _fork(self) -> None:
        shared = {
            "WORLD_SIZE": str(self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": "127.0.0.1",
        }
        shared |= {"MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
        context = multiprocessing.get_context("forkserver")
        for rank in range(self.processes):
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.processes > 1 else {}
            arguments = (self.spec, self.arguments, str(self.log), own | self._variables)
            self._children.append(context.Process(target=forked, args=arguments))
        for child in self._children:
            child.start()
        self.pids = [child.pid for child in self._children]

    def _launch(self, launcher: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(launcher),
                cwd=ROOT,
                stderr=log,
                stdout=log,
                start_new_session=True,
                env=environment(),
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # `nohup` of this program ignores it
            )

    def command(self, launcher: str) -> list[str]:
        """Return the command line of a launcher."""
        start = {
            "python": [sys.executable],
            "accelerate launch": [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu"],
            "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
        }[launcher]
        if launcher != "python":
            start += ["--num_processes", "1"] if launcher == "accelerate launch" else []
            start += ["--main_process_port" if launcher == "accelerate launch" else "--master-port", str(free_port())]
        return [*start, str(Path(__file__)), "child", self.spec, *self.arguments]

    def held(self) -> bool:
        """Wait until the run is at the place where it is slowed down."""
        return waited(self._held.exists)

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the job."""
        if self._children:
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        else:
            os.killpg(self.process.pid, number)

    def codes(self) -> list[int | None]:
        """Return the exit codes of the training processes when all have ended; None for one that was ended."""
        if self._children:
            for child in self._children:
                child.join(PATIENCE)
            found = [child.exitcode for child in self._children]
            for child in self._children:
                child.kill()
            return found
        if waited(lambda: all(code.exists() and code.read_text() for code in self._codes)):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return [int(code.read_text() or -1) if code.exists() else None for code in self._codes]

    def said(self) -> str:
        """Return what the job wrote to its log."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def logged(self) -> int:
        """Return the last step in the curves, 0 if there is none."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def saved(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none."""
        from mtsp.training.checkpoint import storage

        return max(map(storage.step_of, storage.checkpoints(self.run_dir / "checkpoints")), default=0)


def environment() -> dict[str, str]:
    """Return the environment of launched jobs."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def forked(spec: str, arguments: list[str], log: str, own: dict[str, str]) -> None:
    """Be a training process that was forked."""
    import torch

    from mtsp.training.signals import STOP

    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)  # the fork server may have them blocked
    os.environ.update(own)
    torch.set_num_threads(1)
    child(spec, arguments)


def child(spec: str, arguments: Sequence[str]) -> None:
    """Train, slowed down where asked; write the exit code to a file and exit with it."""
    settings = json.loads(spec)
    slow_down(settings["hold"], Path(settings["held"]))
    from tools.train import main

    code = main(arguments)
    Path(settings["codes"][int(os.environ.get("RANK", "0"))]).write_text(str(code))
    sys.exit(code)


def slow_down(what: str, note: Path) -> None:
    """Slow down a part of the run by replacing a function, which first creates the file `note`."""
    from mtsp.evaluation import evaluate
    from mtsp.training import loop
    from mtsp.training.checkpoint import atomic_save

    place, name, seconds = {
        "training": (loop, "optimizer_step", 3.0),
        "evaluation": (evaluate, "at_resolution", 3.0),
        "saving": (atomic_save, "save_file", 3.0),
    }.get(what, (None, "", 0.0))
    if place is None:
        return
    function = getattr(place, name)

    def slow(*arguments: Any, **keywords: Any) -> Any:
        if what != "training" or keywords["step"] >= 6:
            note.touch()
            time.sleep(seconds)
        return function(*arguments, **keywords)

    setattr(place, name, slow)


def waited(done: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until `done()` is true, and return whether it became so."""
    end = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outcome(run_dir: Path) -> Any:
    """Return the bits that must not depend on how a run was disturbed; None if the run has not ended."""
    from safetensors.torch import load_file

    if not (run_dir / "results.json").exists():
        return None
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in ("time", "train/samples_per_second")} for row in rows]
    weights = load_file(run_dir / "weights.safetensors")
    return (
        {name: value.numpy().tobytes() for name, value in weights.items()},
        rows,
        (run_dir / "results.json").read_text(),
    )


def undisturbed(out: Path, name: str, *more: str, processes: int = 1) -> Any:
    """Return the outcome of the run that nobody disturbs, which is made once."""
    name = f"undisturbed-{name}-{processes}"
    if outcome(out / "runs" / name) is None:
        shutil.rmtree(out / "runs" / name, ignore_errors=True)
        job = Job(out, name, *more, processes=processes)
        assert job.codes() == [0] * processes, job.said()
    return outcome(out / "runs" / name)


# The attacks


def signals(out: Path, _: argparse.Namespace) -> Iterator[Row]:
    """Send each signal to all processes of a job, under each launcher, at each of three moments."""
    for name in SIGNALS:
        for launcher, processes in LAUNCHERS.items():
            for moment in ("training", "evaluation", "saving"):
                attack = f"{name} to all, {launcher}, {moment}"
                if is_done(out, "signals", attack):
                    continue
                run = attack.replace(" ", "-").replace(",", "")
                shutil.rmtree(out / "runs" / run, ignore_errors=True)
                more = ["train.save_every=3"] if moment == "saving" else []
                job = Job(out, run, *more, launcher=launcher, hold=moment)
                assert job.held(), job.said()
                time.sleep(0.3)
                began = time.monotonic()
                job.signal(getattr(signal, name))
                codes = job.codes()
                seconds, lost = time.monotonic() - began, job.logged() - job.saved()
                again = Job(out, run, *more, "--resume", "must", processes=processes)
                ended = again.codes() == [0] * processes
                same = ended and outcome(job.run_dir) == undisturbed(out, "short", processes=processes)
                yield Row(
                    attack,
                    "exit 75, 0 steps lost, same bits",
                    f"exit {', '.join(map(str, codes))} of {launcher if processes == 1 else 'ranks'}, "
                    f"{lost} steps lost, {'same bits' if same else 'OTHER BITS'}, {seconds:.1f} s, launcher "
                    f"{job.process.returncode}",
                    codes == [75] * processes and lost == 0 and same,
                )


def kills(out: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Kill runs at random moments until they end, and compare their bits; a row for each run that ended."""
    for processes, keep_last, wanted in ((1, 2, options.kills), (2, 2, options.kills), (1, 1, 30), (2, 1, 30)):
        setting = f"SIGKILL, {processes} process{'es' * (processes > 1)}, keep_last {keep_last}"
        done = [row for row in read(out, "kills") if row["attack"].startswith(setting)]
        count, number = sum(int(row["happened"].split()[0]) for row in done), len(done)
        more = ["train.steps=40", "train.save_every=2", "evaluation.every=10", f"train.keep_last={keep_last}"]
        truth = undisturbed(out, "long", *more, processes=processes)
        while count < wanted:
            rng, name = random.Random(f"{setting} {number}"), f"kills-{processes}-{keep_last}-{number}"
            shutil.rmtree(out / "runs" / name, ignore_errors=True)
            killed, lost, before = 0, 0, 0
            while True:
                job = Job(out, name, *more, "--resume", "must" if before else "auto", processes=processes)
                if rng.random() < 0.9:  # otherwise while it starts
                    until = before + rng.randint(1, 6)
                    waited(lambda job=job, until=until: job.logged() >= until or not alive(job.pids))
                time.sleep(rng.uniform(0.0, 0.3))
                running = alive(job.pids)
                for pid in rng.sample(job.pids, len(job.pids)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                codes = job.codes()
                if not running or codes == [0] * processes:
                    break
                killed, lost, before = killed + 1, lost + (job.saved() < before), job.saved()
            same = codes == [0] * processes and outcome(job.run_dir) == truth
            shutil.rmtree(job.run_dir)
            count, number = count + killed, number + 1
            yield Row(
                f"{setting}, run {number}",
                "no checkpoint lost, same bits",
                f"{killed} kills, {lost} lost, {'same bits' if same else 'OTHER BITS'}",
                same and not lost,
            )


def alive(pids: Sequence[int]) -> bool:
    """Return whether all of these processes run."""
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    return all(state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX" for state in states)


# The table


def read(out: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows that were measured before."""
    path = out / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_done(out: Path, name: str, attack: str) -> bool:
    """Return whether an attack has a row."""
    return any(row["attack"] == attack for row in read(out, name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks that have no row yet; return 1 if one was not survived."""
    from tools.bench.reliability import costs
    from tools.bench.reliability.scenarios import scenarios

    attacks: dict[str, Callable[[Path, argparse.Namespace], Iterator[Row]]] = {"signals": signals, "kills": kills}
    attacks |= {"scenarios": scenarios, "tracker": costs.tracker, "saving": costs.saving}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("attacks", choices=attacks, help="which attacks to make")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="folder for runs and results")
    parser.add_argument("--kills", type=int, default=100, help="number of kills with one and with two processes")
    options = parser.parse_args(arguments)
    multiprocessing.set_forkserver_preload(["mtsp.training.run", "tools.build", "timm", "segmentation_models_pytorch"])
    out = options.out.resolve()
    prepare(out)
    for row in attacks[options.attacks](out, options):
        with (out / f"{options.attacks}.jsonl").open("a") as file:
            file.write(json.dumps(row._asdict()) + "\n")
        print(f"{'pass' if row.passed else 'FAIL'}  {row.attack}: {row.happened}", flush=True)
    rows = read(out, options.attacks)
    print(f"{sum(row['passed'] for row in rows)} of {len(rows)} pass")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3:])
    sys.exit(main())
