"""A seeded fuzzer: mutated sessions against a running broker, and against our client.

Run it with ``python -m tests.fuzz --seconds 60 --seed 1``; a failing case says how to play it again. ``test_fuzz.py``
is a bounded run for CI.

- :mod:`~tests.fuzz.packets` writes valid sessions, as a list of packets per stream;
- :mod:`~tests.fuzz.mutate` breaks them;
- :mod:`~tests.fuzz.throw` throws them at the broker over TCP, TLS and QUIC, and mutated datagrams of a handshake;
- :mod:`~tests.fuzz.hostile` is a server that does the same to our client;
- :mod:`~tests.fuzz.witness` is a pair of clients that must never notice;
- :mod:`~tests.fuzz.run` puts it together, and looks for what was left behind.
"""
