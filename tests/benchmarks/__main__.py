"""``python -m tests.benchmarks``: run all benchmarks, print their tables, and the figures as JSON."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from tests.benchmarks import (
    bench_clients,
    bench_codec,
    bench_migration,
    bench_records,
    bench_round_trips,
    bench_streams,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=("clients", "records", "codec", "migration", "round-trips", "streams"),
        action="append",
        help="default: all",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual message counts (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds per throughput figure (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file instead of standard output")
    arguments = parser.parse_args()
    wanted = arguments.only or ["records", "codec", "clients", "migration", "round-trips", "streams"]
    figures: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    if "records" in wanted:
        figures["records"] = bench_records.run(max(10_000, int(bench_records.HELD * arguments.scale)))
        print(bench_records.tables(figures["records"]), flush=True)
    if "codec" in wanted:
        figures["codec"] = bench_codec.run(seconds=arguments.scale)
        print(bench_codec.tables(figures["codec"]), flush=True)
    if "clients" in wanted:
        figures["clients"] = bench_clients.run(arguments.scale, arguments.repeats)
        print(bench_clients.tables(figures["clients"]), flush=True)
    if "migration" in wanted:
        figures["migration"] = bench_migration.run(max(1, round(bench_migration.RUNS * arguments.scale)))
        print(bench_migration.tables(figures["migration"]), flush=True)
    if "round-trips" in wanted:
        figures["round-trips"] = bench_round_trips.run(max(1, round(bench_round_trips.REPEATS * arguments.scale)))
        print(bench_round_trips.tables(figures["round-trips"]), flush=True)
    if "streams" in wanted:
        figures["streams"] = bench_streams.run(arguments.scale, arguments.repeats)
        print(bench_streams.tables(figures["streams"]), flush=True)
    text = json.dumps(figures, indent=2)
    if arguments.json:
        arguments.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
