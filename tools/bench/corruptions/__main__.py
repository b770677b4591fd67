"""Damage a file of each format in many ways and count the outcomes: `python tools/bench/corruptions --count 250`.

Outcomes: `equal` content; `different` content without an error; an error in one line that `names` the file; one that
does not (`unnamed`); a `traceback`; a `crash` of the process; a `hang` of 20 s or more; `memory` of 1 GiB or more.
Exit code 1 if there is any but the first three, or different content in a format with checksums.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # before installed packages called tools, models or data

from tools.bench.corruptions.formats import FORMATS
from tools.bench.corruptions.outcomes import OUTCOMES, in_processes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=250, help="damaged files of each format (default: 250)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="formats with WORD in their names")
    arguments = parser.parse_args(argv)
    rows, bad = [], 0
    for form in FORMATS:
        if arguments.only and not any(word in form.name for word in arguments.only):
            continue
        counts, examples = in_processes(form, arguments.count, arguments.seed)
        rows.append(f"| {form.name} | {' | '.join(str(counts[outcome]) for outcome in OUTCOMES)} | {form.silent} |")
        print(rows[-1], flush=True)
        for example in examples:
            print(f"  {example}", file=sys.stderr)
        bad += sum(counts[outcome] for outcome in OUTCOMES[3:]) + (0 if form.silent else counts["different"])
    print(f"\n| format | {' | '.join(OUTCOMES)} | different where |\n|{'---|' * (len(OUTCOMES) + 2)}")
    print("\n".join(rows))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
