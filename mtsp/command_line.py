"""Wrap the main function of every program, and parse types of arguments.

Programs parse their arguments before slow imports (torch, the networks, the data sets), so that `--help` and errors in
arguments appear at once. Slow imports are therefore inside the functions that use them.
"""

import argparse
import faulthandler
import functools
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STOPPED = 75
"""Exit code of a program that a signal stopped and that has saved its work: EX_TEMPFAIL, try again."""


def program(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a program's main: set up logging, and turn errors that the user can fix into one line and exit code 1.

    These errors are ValueError, OSError, FloatingPointError and MemoryError. Any other exception is a bug in mtsp and
    keeps its traceback. Ctrl-C gives exit code 130. torchrun, which prints the first error of its processes last, gets
    the line too; of the processes that it started, only the first prints it itself.
    """

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None, **settings: Any) -> int:
        if not faulthandler.is_enabled():
            faulthandler.enable()  # stacks of all threads, when torch aborts a process that hangs
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        if int(os.environ.get("RANK", "0")) == 0:  # only one of several processes logs
            logging.getLogger("mtsp").setLevel(logging.INFO)
        try:
            return main(arguments, **settings)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            _report(error)
            return 1

    return wrapped


def _report(error: Exception) -> None:
    """Print an error, and give it to torchrun. The error of a process that only misses another one is no cause."""
    consequence = isinstance(error, ConnectionAbortedError)
    text = f"{error}" if consequence else f"error: {error}"
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None or os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
    if file is not None:
        told = {"message": text, "timestamp": int(time.time()) + 60 * consequence}  # torchrun shows the first as cause
        Path(file).write_text(json.dumps(told), encoding="utf-8")


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--config`, and `overrides` for `key=value` arguments that override config values."""
    parser.add_argument(
        "--config", required=required, help="YAML file; a name without a folder is looked up in configs/"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to override, such as train.steps=100"
    )


def require_pair(parser: argparse.ArgumentParser, arguments: argparse.Namespace, first: str, second: str) -> None:
    """Exit with an error if one of two options is given without the other."""
    given = [getattr(arguments, name.replace("-", "_")) is not None for name in (first, second)]
    if given[0] != given[1]:
        parser.error(f"--{first} and --{second} belong together; give both or none")


def require_empty(folder: Path, option: str) -> None:
    """Raise ValueError if the folder that `option` names exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; choose a new or empty folder for {option}")


def stopped() -> int:
    """Print that a signal stopped the program and how to continue; return the exit code `STOPPED`."""
    print("stopped; the same command continues from here", file=sys.stderr, flush=True)
    return STOPPED


def above_zero(text: str) -> float:
    """Return an argument as a finite number above 0. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def at_least_one(text: str) -> int:
    """Return an argument as a whole number above 0. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def height_width(text: str) -> tuple[int, int]:
    """Return an argument such as 240x432 as (height, width). Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 240x432")
    return int(match[1]), int(match[2])
