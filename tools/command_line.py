"""Command lines: the frame around every program's main, and types of arguments.

A program parses its arguments before it imports anything that takes long (torch, the networks, the data sets), so that
`--help` and a wrong argument answer at once: heavy imports stand in the functions that use them.
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
    """Wrap a program's main: set up logging, and turn errors that a person can mend into one line and exit code 1.

    Those are ValueError, OSError, FloatingPointError and MemoryError. Any other exception is a fault of ours and keeps
    its traceback. Ctrl-C gives exit code 130.
    """

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None, **settings: Any) -> int:
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        if int(os.environ.get("RANK", "0")) == 0:  # of several processes, one reports
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
    """Add `--config` and `key=value` arguments, `overrides`, that change it."""
    parser.add_argument("--config", required=required, help="a YAML file, looked for in configs/ if no folder is named")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change the config, as in train.steps=100")


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
    """Return an argument as height and width. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, as in 240x432")
    return int(match[1]), int(match[2])
