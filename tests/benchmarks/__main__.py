"""``python -m tests.benchmarks``: run all benchmarks, print their tables, and the figures as JSON."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks import (
    bench_clients,
    bench_codec,
    bench_fanout,
    bench_matching,
    bench_migration,
    bench_records,
    bench_round_trips,
    bench_store,
    bench_streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Benchmark(NamedTuple):
    """What is measured, at a share of the usual size and in some rounds, and how its figures are shown."""

    run: Callable[[float, int], dict[str, Any]]
    tables: Callable[[dict[str, Any]], str]


BENCHMARKS = {
    "records": Benchmark(
        lambda scale, _: bench_records.run(max(10_000, int(bench_records.HELD * scale))), bench_records.tables
    ),
    "codec": Benchmark(lambda scale, _: bench_codec.run(seconds=scale), bench_codec.tables),
    "matching": Benchmark(lambda scale, _: bench_matching.run(scale), bench_matching.tables),
    "fan-out": Benchmark(bench_fanout.run, bench_fanout.tables),
    "clients": Benchmark(bench_clients.run, bench_clients.tables),
    "migration": Benchmark(
        lambda scale, _: bench_migration.run(max(1, round(bench_migration.RUNS * scale))), bench_migration.tables
    ),
    "round-trips": Benchmark(
        lambda scale, _: bench_round_trips.run(max(1, round(bench_round_trips.REPEATS * scale))),
        bench_round_trips.tables,
    ),
    "streams": Benchmark(bench_streams.run, bench_streams.tables),
    "store": Benchmark(bench_store.run, bench_store.tables),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=tuple(BENCHMARKS), action="append", help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual message counts (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds per throughput figure (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file instead of standard output")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for name, benchmark in BENCHMARKS.items():
        if not arguments.only or name in arguments.only:
            figures[name] = benchmark.run(arguments.scale, arguments.repeats)
            print(benchmark.tables(figures[name]), flush=True)
    text = json.dumps(figures, indent=2)
    if arguments.json:
        arguments.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
