"""The docker SDK in threads of our own: short calls, with timeouts, its errors translated.

What is long or hot (events, output, statistics) goes through :mod:`cameleer.drivers.docker.client.http` instead, which
holds no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cameleer.drivers.docker.client.failures import EngineGone, translated
from cameleer.errors import DriverError
from cameleer.threads import Pool

if TYPE_CHECKING:
    import docker
    from cameleer.drivers.docker.client.endpoint import Endpoint

T = TypeVar("T")

_THREADS = 8


class Sdk:
    """The SDK's low-level client of one engine, made at the first call.

    :param timeout_s: how long the engine may take to answer one call.
    :param version: of the API, as far as it is known already.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float, version: Callable[[], str] = lambda: "") -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._version = version
        self._pool = Pool("cameleer-docker", _THREADS)
        self._lock = threading.Lock()
        self._client: docker.APIClient | None = None

    async def call(
        self, what: str, function: Callable[[docker.APIClient], T], *, late: Callable[[T], object] | None = None
    ) -> T:
        """Call in a thread.

        :param what: for messages: ``create the container web``.
        :param late: given the result of a call that was cancelled, in the loop.
        :raises EngineGone: it does not answer.
        :raises DriverError: it refused.
        """
        try:
            return await self._pool.call(lambda: function(self._connected()), late)
        except DriverError:
            raise
        except Exception as exc:  # whatever the SDK and what it stands on raise
            error = translated(exc, what)
            if isinstance(error, EngineGone):  # the next may be of another version
                self._forget()
            raise error from exc

    def _connected(self) -> docker.APIClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> docker.APIClient:
        from docker.tls import TLSConfig

        import docker

        tls = self._endpoint.tls
        return docker.APIClient(
            base_url=self._endpoint.url,
            version=self._version() or "auto",
            timeout=int(self._timeout_s) or 1,
            num_pools=_THREADS,
            max_pool_size=_THREADS,
            tls=False
            if tls is None
            else TLSConfig(
                client_cert=(tls.cert, tls.key) if tls.cert and tls.key else None,
                ca_cert=tls.ca or None,
                verify=tls.verify,
            ),
        )

    def _forget(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        """End the threads and close the connections."""
        self._pool.close()
        self._forget()
