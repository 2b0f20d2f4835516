"""One job of one client in a process of its own: ``python -m tests.benchmarks.worker JOB CLIENT URL CA TUNING JSON``.

Prints ``ready`` when a receiver's subscription stands, and the job's figures as the last line, in JSON.
"""

from __future__ import annotations

import json
import sys

from tests.benchmarks.clients import CLIENTS, Target


def main() -> None:
    job, client, url, ca_file, tuning, options = sys.argv[1:]
    result = getattr(CLIENTS[client], job)(Target(url, ca_file, tuning), **json.loads(options))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
