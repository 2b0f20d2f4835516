"""QUIC (RFC 9000) on aioquic's sans-IO engine: client, listener, streams and the facts of a handshake.

This floor knows no MQTT. Start at :func:`mqttquic_lab.quic.client.open_quic` and
:func:`mqttquic_lab.quic.server.listen_quic`; both give a :class:`mqttquic_lab.quic.connection.QuicConnection`.
"""
