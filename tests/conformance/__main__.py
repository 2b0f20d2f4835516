"""``python -m tests.conformance``: how many normative statements are covered, not applicable, open."""

from __future__ import annotations

from tests.conformance.table import FILES, figures, read


def main() -> None:
    """Print the figures, and what is open."""
    total = dict.fromkeys(figures([]), 0)
    for version, path in FILES.items():
        rows = read(path)
        counts = figures(rows)
        for standing, count in counts.items():
            total[standing] += count
        tests = {node for row in rows for node in row.node_ids}
        shown = ", ".join(f"{count} {standing}" for standing, count in counts.items())
        print(f"MQTT {version:<5}: {len(rows)} statements: {shown}; {len(tests)} tests named")
        for row in rows:
            if row.standing == "open":
                print(f"  open: {row.name} ({row.binds}): {row.open or row.says}")
    print("together:", ", ".join(f"{count} {standing}" for standing, count in total.items()))


if __name__ == "__main__":
    main()
