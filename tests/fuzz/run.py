"""Draw cases until a time is over, or until Ctrl-C: `python tests/fuzz/run.py [--seed N]`."""

import argparse
import itertools
import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
import torch
from checks import check


def fuzz(first, seconds=float("inf"), stop=True, say=print):
    """Check the cases of seeds in a row; the number of cases, and those that failed."""
    threads, end, failed = torch.get_num_threads(), time.monotonic() + seconds, []
    torch.set_num_threads(1)
    try:
        for count in itertools.count():
            if time.monotonic() > end or (failed and stop):
                return count, failed
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(first + count)
            except AssertionError as error:
                failed.append(first + count)
                say(f"\n{error}\n")
            except KeyboardInterrupt:
                return count, failed
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, help="one case alone")
    parser.add_argument("--first", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    if given.seed is not None:
        check(given.seed)
        print("this case passes")
        sys.exit()
    count, failed = fuzz(given.first, given.seconds, stop=False)
    print(f"{count} cases from seed {given.first}, {len(failed)} failed")
    sys.exit(bool(failed))
