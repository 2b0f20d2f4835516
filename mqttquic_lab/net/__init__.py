"""Connections of every transport: addresses, certificates, TCP and TLS, opening and listening."""
