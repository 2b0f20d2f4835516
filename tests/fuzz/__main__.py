"""``python -m tests.fuzz``: throw mutated sessions at brokers and at our client for a while."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.fuzz.run import Fuzzer


def main() -> int:
    """Run it; returns the exit code, 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on (default 60)")
    parser.add_argument("--seed", default=None, help="any text; default: the time")
    parser.add_argument("--workers", type=int, default=4, help="cases at a time (default 4)")
    parser.add_argument("--case", type=int, default=None, help="play one case again, and show its bytes")
    options = parser.parse_args()
    fuzzer = Fuzzer(options.seed or str(int(time.time())), options.workers)
    if options.case is not None:
        r, kind, name = fuzzer.kind_of(options.case)
        print(f"case {options.case}: {kind} at the broker {name!r}")
        if kind != "handshake":
            plan = fuzzer.plan(r, kind, name)
            for lane in plan.lanes:
                print(f"  {lane.kind}, then {lane.end}: {lane.header.hex()} {[each.hex() for each in lane.packets]}")
    report = asyncio.run(fuzzer.run(options.seconds, options.case))
    for line in report.lines():
        print(line)
    print("outcomes:", dict(report.outcomes))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
