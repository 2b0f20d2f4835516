"""Where a server of ours listens, as its users ask for it."""

from __future__ import annotations

from typing import ClassVar

from mqttquic_lab.errors import UsageError


class Listening:
    """What has listeners, by the schemes of their URLs; the first is that of QUIC if there is one."""

    NOT_LISTENING: ClassVar[str]
    """What is said when somebody asks for a URL that is not there."""

    _urls: dict[str, str]

    @property
    def urls(self) -> dict[str, str]:
        """Scheme -> URL of every listener: ``"quic"``, ``"mqtts"``, ``"mqtt"``."""
        return dict(self._urls)

    @property
    def url(self) -> str:
        """The QUIC URL, or the next best one if there is no QUIC listener.

        Raises
        ------
        UsageError
            It does not listen.
        """
        for url in self._urls.values():
            return url
        raise UsageError(self.NOT_LISTENING)
