"""Choose what fits this machine: a backbone whose weights can be had, a size of images, a batch."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from models.pretrained.downloads import published_download
from models.pretrained.files import locate
from mtsp.files.reachable import why_unreachable

_BACKBONES = {  # network of timm, and its weights; the first whose weights can be had is used
    True: (("resnet50", "imagenet"), ("tf_efficientnet_lite0", "package:efficientnet-lite0")),
    False: (("tf_efficientnet_lite0", "package:efficientnet-lite0"), ("mobilenetv2_100", "imagenet")),
}
"""Backbones to try, by whether there is a GPU."""


class Machine(NamedTuple):
    """What a machine can do."""

    gpu: bool
    memory: int
    """Bytes of free memory, of the GPU if there is one."""

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine."""
        import torch

        if torch.cuda.is_available():
            return cls(True, torch.cuda.mem_get_info()[0])
        linux = Path("/proc/meminfo")  # counts caches that the system gives up; macOS has no such number
        if linux.is_file() and (found := re.search(r"MemAvailable: +(\d+) kB", linux.read_text())):
            return cls(False, int(found[1]) * 1024)
        return cls(False, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)

    def batch(self, size: tuple[int, int], *, bytes_per_pixel: int, examples: int, most: int) -> int:
        """Return the largest power of two that fits half of the memory, `most`, and the number of examples."""
        room = max(0, self.memory // 2 - 10**9)  # 1 GB: weights, gradients, the libraries
        fitting = max(1, min(room // (bytes_per_pixel * size[0] * size[1]), most, examples))
        return 1 << (fitting.bit_length() - 1)


class Backbone(NamedTuple):
    """A pretrained network to start from."""

    network: str
    """Its name in timm."""
    weights: str
    """The value of `branches.NAME.weights`."""
    found: str
    """Where the weights come from, or why they cannot be had, for people."""


def unavailable(network: str, source: str) -> str | None:
    """Return why published weights are neither stored here nor can be downloaded, or None if they can be had."""
    download = published_download(network, source)
    if download is None:
        return f"nobody publishes weights of {network}"
    if download.kept is not None or not (why := why_unreachable(download.url)):
        return None
    return f"{download.url} cannot be reached: {why}"


def choose_backbone(machine: Machine) -> Backbone:
    """Return the first backbone for this machine whose weights are installed, stored, or can be downloaded."""
    problems = []
    for network, weights in _BACKBONES[machine.gpu]:
        if weights != "imagenet":
            try:
                return Backbone(network, weights, f"its ImageNet weights are in {locate(weights)}")
            except FileNotFoundError as error:
                problems.append(str(error))
                continue
        if (why := unavailable(f"tu-{network}", weights)) is None:
            return Backbone(network, weights, "its library has its ImageNet weights, or downloads them")
        problems.append(why)
    network, weights = _BACKBONES[machine.gpu][0]
    return Backbone(network, weights, "its weights cannot be had now: " + "; ".join(problems))
