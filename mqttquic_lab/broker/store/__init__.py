"""The broker's memory on disk: sessions, messages on their way and retained messages in one SQLite file.

Memory is what counts while the broker runs; the file follows it closely enough that nothing a client was told can be
forgotten. Three parts, from the event loop to the disk:

- :class:`~mqttquic_lab.broker.store.journal.Journal`, on the loop: collects what has changed, and holds packets back
  that attest to it;
- :class:`~mqttquic_lab.broker.store.delta.Delta`: what has changed since the last transaction, the last state of each
  thing only, so that what came and went in between never reaches the disk;
- :class:`~mqttquic_lab.broker.store.file.StoreFile`, on a thread of its own: one transaction per delta.

One delta is written at a time; meanwhile the next one fills up. So a transaction holds more the busier the broker is,
and a slow disk makes acknowledgements wait, not the loop.

:mod:`~mqttquic_lab.broker.store.restoring` brings it all back when a broker starts. Not kept are the sessions that end
with their connection (Session Expiry Interval 0), QoS 0 messages, and the books of data streams and of flows
(``MQTT-next``): those end with the broker as they would with their connection.
"""

from __future__ import annotations

from mqttquic_lab.broker.store.delta import Delta
from mqttquic_lab.broker.store.file import StoreFile
from mqttquic_lab.broker.store.journal import Journal
from mqttquic_lab.broker.store.kept import KeptSession
from mqttquic_lab.broker.store.restoring import restore

__all__ = ["Delta", "Journal", "KeptSession", "StoreFile", "restore"]
