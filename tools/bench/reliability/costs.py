"""Measure what a tracker without a server costs a run, and what saving checkpoints costs; see faults.py."""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench.reliability.faults import Job, Row


def tracker(out: Path, _: argparse.Namespace) -> Iterator[Row]:
    """Measure how much longer a run takes whose wandb server does not answer: a closed port, and a silent one."""
    import socket

    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(64)
    places = {"closed port": "http://127.0.0.1:9", "silent server": f"http://127.0.0.1:{silent.getsockname()[1]}"}
    seconds: dict[str, float] = {}
    for place, url in {"warm-up": "", "no tracker": "", **places}.items():
        name = f"tracker-{place.replace(' ', '-')}"
        shutil.rmtree(out / "runs" / name, ignore_errors=True)
        more = ["tracking.trackers=[wandb]"] if url else []
        variables = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40} if url else {}
        began = time.monotonic()
        job = Job(out, name, *more, variables=variables)
        codes = job.codes()
        seconds[place] = time.monotonic() - began
        if place == "warm-up":  # it starts the process that the others are forked from
            continue
        longer = seconds[place] - seconds["no tracker"]
        yield Row(
            place, "at most 15 s more", f"exit {codes}, {seconds[place]:.1f} s, {longer:.1f} s more", longer <= 15
        )


def saving(out: Path, _: argparse.Namespace) -> Iterator[Row]:
    """Measure what saving costs the thread that trains, for the networks of the demo and of the paper."""
    demo = {"encoder": "tu-mobilenetv3_small_050", "width": 32, "flow_width": 16, "flow": {"width": 0.125}}
    for network, seconds, most in ((demo, 40 / 3, 2.0), ({"encoder": "resnet101"}, 60.0, 5.0)):
        for how in ("blocking", "asynchronous"):
            size, wall, busy = _cost_of_saving(how, {"name": "segflow", **network}, out)
            yield Row(
                f"SegFlow with {network['encoder']}, {size:.0f} MiB of weights and momentum, {how}",
                f"asynchronous: at most {most:g} % of the time at one save in {seconds:.0f} s",
                f"the training waits {wall:.3f} s, {busy:.3f} s of them on a processor: {100 * busy / seconds:.2f} %",
                how == "blocking" or 100 * busy / seconds <= most,
            )


def _cost_of_saving(how: str, network: dict[str, Any], out: Path) -> tuple[float, float, float]:
    """Return the MiB of a network's state, and the seconds and processor seconds that a save takes from the training.

    Processor seconds do not depend on what else the machine does.
    """
    import torch

    from models.segflow.network import SegFlowConfig
    from mtsp.training.checkpoint import atomic_save
    from mtsp.training.checkpoint.saver import _copied

    model = SegFlowConfig.model_validate(network).build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    costs, size = [], 0.0
    with tempfile.TemporaryDirectory(dir=out) as folder, ThreadPoolExecutor(1) as thread:
        for step in range(1, 8):
            wall, busy = time.monotonic(), time.thread_time()
            state = _copied(model.state_dict()), _copied(optimizer.state_dict())
            size = 2 * sum(tensor.nbytes for tensor in state[0].values()) / 2**20
            write = partial(atomic_save.save, Path(folder), step, *state, {"step": step}, keep_last=1)
            pending = thread.submit(write) if how == "asynchronous" else write()
            costs.append((time.monotonic() - wall, time.thread_time() - busy))
            if isinstance(pending, Future):
                pending.result()
    wall, busy = (statistics.median(found) for found in zip(*costs, strict=True))
    return size, wall, busy


if __name__ == "__main__":
    sys.exit("run tools/bench/reliability/faults.py")
