"""Speed, measured beside other clients in the same run and reported as ratios. Run: ``python -m tests.benchmarks``.

Sender, broker and receiver are three processes, so that no two of them share one interpreter lock. Every TCP path has
TCP_NODELAY set, on both ends: with Nagle's algorithm on, a QoS 1 round trip would measure the peer's delayed ACK (about
40 ms) instead of the client.
"""
