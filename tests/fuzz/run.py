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


def fuzz(seeds, seconds=float("inf"), stop=True, say=print):
    """Check the case of each seed until one fails, a time is over, all are done, or Ctrl-C.

    Returns:
        How many cases were checked, in how many nothing was, as what was drawn does not go
        together, and the seeds of those that failed.
    """
    threads, end = torch.get_num_threads(), time.monotonic() + seconds
    count, empty, failed = 0, 0, []
    torch.set_num_threads(1)
    try:
        for seed in seeds:
            if time.monotonic() > end or (failed and stop):
                break
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    empty += not check(seed)
            except AssertionError as error:
                failed.append(seed)
                say(f"\n{error}\n")
            except KeyboardInterrupt:
                break
            count += 1
    finally:
        torch.set_num_threads(threads)
    return count, empty, failed


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
    count, empty, failed = fuzz(itertools.count(given.first), given.seconds, stop=False)
    print(f"{count} cases from seed {given.first}, {empty} of them empty, {len(failed)} failed")
    sys.exit(bool(failed))
