"""A client of the Serve application: a few lines over requests, for the demo, for tests and as an example. It reads and writes nothing but HTTP."""

from typing import Any

import requests


class RankClient:
    """Asks one application; raises ValueError with the application's own words where it refuses."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment is not on the way to a service on this machine

    def rank(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST /v1/rank, candidates best first."""
        return self._json(self._session.post(f"{self.url}/v1/rank", json=request, timeout=self.timeout_s))

    def models(self) -> dict[str, Any]:
        """What is serving."""
        return self._json(self._session.get(f"{self.url}/v1/models", timeout=self.timeout_s))

    def health(self) -> dict[str, Any]:
        """GET /healthz."""
        return self._json(self._session.get(f"{self.url}/healthz", timeout=self.timeout_s))

    def _json(self, response: requests.Response) -> dict[str, Any]:
        if not response.ok:
            try:
                problem = response.json()
                said = f"{problem['detail']} {' '.join(problem['errors'])} {problem['remedy']}"
            except (ValueError, KeyError):
                said = response.text[:500]
            raise ValueError(f"{response.request.method} {response.url}: {response.status_code} {said}")
        answer: dict[str, Any] = response.json()
        return answer
