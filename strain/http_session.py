"""An HTTP session that tries again where that helps, and what went wrong with a request in one line."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter, Retry

from gwtwins.strain.errors import InputError

RETRIES = 4
BACKOFF = 0.5  # s before the second try, doubled for each one after it
TIMEOUT = (10.0, 30.0)  # s, to connect and between two packets
_STATUS_TO_RETRY = (408, 413, 429, 500, 501, 502, 503, 504)


class Unreachable(InputError):
    """The other side cannot be spoken to: no network, a name that does not resolve, nobody listening, silence."""


class _Session(requests.Session):
    """Time-outs look like any other lost connection: the gwosc client would start ten more rounds of tries for them."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            return super().request(*args, **kwargs)
        except requests.Timeout as error:
            raise requests.ConnectionError(*error.args) from error


def open_session() -> requests.Session:
    """A session that tries again, with growing pauses, after a server error or a connection that was reset."""
    tries = Retry(
        total=RETRIES,
        connect=1,
        backoff_factor=BACKOFF,
        status_forcelist=_STATUS_TO_RETRY,
        allowed_methods=["GET"],
        respect_retry_after_header=False,  # it may ask for hours
    )
    session = _Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=tries))
    return session


def http_fault(where: str, error: requests.RequestException) -> InputError:
    """What went wrong on the way to ``where``."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return InputError(where, f"the server answers {error.response.status_code} {error.response.reason}")
    if isinstance(error, requests.exceptions.InvalidJSONError):
        return InputError(where, "the answer is not JSON", "a server that answers as gwosc.org does")
    if isinstance(error, requests.exceptions.RetryError):
        return InputError(where, f"{_cause(error)} in {RETRIES + 1} tries", "a server in order; try again later")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return Unreachable(where, f"the connection broke ({_cause(error)})", "a network connection")
    if isinstance(error, requests.ConnectionError):
        return Unreachable(where, f"cannot be reached ({_cause(error)})", "a network connection")
    return InputError(where, f"cannot be fetched ({_cause(error)})")


def _cause(error: BaseException) -> str:
    """The words of the first cause: "Connection refused" and not the name of a pool of connections."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
