"""`make chaos`: kills the daemon some hundred times under some thousand jobs and cuts the power some hundred times; its
last line is the count."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from random import SystemRandom

import anyio

from tests.chaos.power import power_cuts
from tests.chaos.storm import Storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=", description=__doc__)
    parser.add_argument("--jobs", type=int, default=6000, help="how many jobs, on both backends together")
    parser.add_argument("--kills", type=int, default=300, help="how many deaths, on both backends together")
    parser.add_argument("--cuts", type=int, default=500, help="how many power cuts")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6), help="repeats a plan")
    parser.add_argument("--backend", choices=("simulated", "local"), action="append", help="only this one")
    options = parser.parse_args()
    backends = options.backend or ["simulated", "local"]
    print(f"seed {options.seed}", flush=True)
    verdicts = []
    for backend in backends:
        with tempfile.TemporaryDirectory(prefix="imageopsd-chaos-") as folder:
            jobs, kills = options.jobs // len(backends), options.kills // len(backends)
            storm = Storm(backend, jobs, kills, options.seed, Path(folder))
            verdict = anyio.run(storm.run)
            verdicts.append(verdict)
            print(f"\n{backend}: {verdict}")
            print("  " + "\n  ".join(f"{count:4} at {where}" for where, count in sorted(storm.hits.items())))
            if storm.resumed:
                print(f"  went on in the middle of an archive: {storm.resumed}")
            missed = [point for point in storm.points if not storm.hits[point]]
            print(f"  not met: {', '.join(missed) or 'none'}")
            if not verdict.good:
                print(verdict.details())
    with tempfile.TemporaryDirectory(prefix="imageopsd-chaos-") as folder:
        cuts = anyio.run(partial(power_cuts, Path(folder), cuts=options.cuts, seed=options.seed))
        good = sum(verdict.good for verdict in cuts)
        print(f"\npower cuts: {len(cuts)}, recovered whole: {good}")
        verdicts += [verdict for verdict in cuts if not verdict.good]
    total = {
        "jobs": sum(verdict.jobs for verdict in verdicts),
        "kills": sum(verdict.kills for verdict in verdicts),
        "lost": sum(len(verdict.lost) for verdict in verdicts),
        "doubled": sum(len(verdict.doubled) for verdict in verdicts),
        "out of order": sum(len(verdict.out_of_order) for verdict in verdicts),
        "untrue": sum(len(verdict.untrue) for verdict in verdicts),
    }
    print(f"\nseed {options.seed}")
    print("  ".join(f"{name} {count}" for name, count in total.items()))
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
