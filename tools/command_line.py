"""Wrap the main function of every program, and parse types of arguments.

Programs parse their arguments before slow imports (torch, the networks, the data sets), so that `--help` and errors in
arguments appear at once. Slow imports are therefore inside the functions that use them.
"""

import argparse
import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any


def program(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a program's main: set up logging, and turn errors that the user can fix into one line and exit code 1.

    These errors are ValueError, OSError, FloatingPointError and MemoryError. Any other exception is a bug in mtsp and
    keeps its traceback. Ctrl-C gives exit code 130.
    """

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None, **settings: Any) -> int:
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        if int(os.environ.get("RANK", "0")) == 0:  # only one of several processes logs
            logging.getLogger("mtsp").setLevel(logging.INFO)
        try:
            return main(arguments, **settings)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return wrapped


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--config`, and `overrides` for `key=value` arguments that override config values."""
    parser.add_argument(
        "--config", required=required, help="YAML file; a name without a folder is looked up in configs/"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to override, such as train.steps=100"
    )


def stopped() -> int:
    """Print that a signal stopped the program and how to continue; return the exit code."""
    print("stopped; the same command continues from here", file=sys.stderr, flush=True)
    return 130


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
