"""``python -m tests.simulation``: play schedules, and show those in which something does not hold."""

import argparse
import sys
import time

from tests.simulation.patches import simulated
from tests.simulation.run import play_on_all_cores
from tests.simulation.worlds import WORLDS, world_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--seed", type=int, help="play this one, and show all that happens in it")
    parser.add_argument("--world", choices=sorted(WORLDS), help="of this world alone")
    parser.add_argument("--show", type=int, default=3, help="failures shown in full")
    given = parser.parse_args()
    if given.seed is not None:
        sys.exit(_one(given.seed, given.world))
    started, played, failures = time.monotonic(), 0, []
    for count, more in play_on_all_cores(given.first, given.seeds, given.world):
        played += count
        for failure in more:
            failures.append(failure)
            if len(failures) <= given.show:
                print(failure, flush=True)
        if sys.stderr.isatty():
            rate = played / (time.monotonic() - started)
            print(f"\r{played} schedules, {rate:.0f} a second, {len(failures)} fail", end="", file=sys.stderr)
    seconds = time.monotonic() - started
    print(f"{played} schedules in {seconds:.1f} s, {played / seconds:.0f} a second: {len(failures)} fail")
    if failures:
        print("seeds:", " ".join(str(failure.seed) for failure in failures[:100]))
    sys.exit(bool(failures))


def _one(seed: int, name: str | None) -> int:
    world = world_of(seed, name, record=True)
    try:
        with simulated():
            world.play()
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    else:
        outcome = ""
    print(f"seed {seed}, {type(world).__name__}")
    print("\n".join(world.history))
    print(outcome or "everything holds")
    return bool(outcome)


if __name__ == "__main__":
    main()
