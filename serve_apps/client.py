"""A client of the Serve application: a few lines over requests, for commands, the demo, tests and as an example. It reads and writes nothing but HTTP."""

from typing import Any
from urllib.parse import quote

import requests

from longtail.storage import without_secrets


class RankClient:
    """Asks one application; raises ValueError with the application's own words where it refuses, and where nobody answers."""

    def __init__(self, url: str, timeout_s: float = 120.0, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment is not on the way to a service on this machine
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def rank(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST /v1/rank, candidates best first."""
        return self._call("POST", "/v1/rank", request)

    def models(self) -> dict[str, Any]:
        """What is serving."""
        return self._call("GET", "/v1/models")

    def health(self) -> dict[str, Any]:
        """GET /healthz."""
        return self._call("GET", "/healthz")

    def put_item(self, item_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of an item."""
        return self._call("PUT", f"/v1/items/{quote(item_id, safe='')}", body)

    def put_user(self, user_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of a user."""
        return self._call("PUT", f"/v1/users/{quote(user_id, safe='')}", body)

    def post_events(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Tell what users did."""
        return self._call("POST", "/v1/events", {"events": events})

    def releases(self) -> dict[str, Any]:
        """What is published."""
        return self._call("GET", "/v1/releases")

    def rollout(self) -> dict[str, Any]:
        """Which release answers whom, and what is seen of each."""
        return self._call("GET", "/v1/rollout")

    def change_rollout(self, change: dict[str, Any]) -> dict[str, Any]:
        """Change that; needs the token."""
        return self._call("POST", "/v1/rollout", change)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        told = without_secrets(self.url)
        try:
            response = self._session.request(method, f"{self.url}{path}", json=body, timeout=self.timeout_s)
        except (UnicodeError, requests.exceptions.InvalidHeader) as error:
            raise ValueError("the token (LONGTAIL_TOKEN) holds characters that a header cannot: copy it as serve_apps.up printed it.") from error
        except (
            requests.exceptions.InvalidJSONError,
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise ValueError(f"{method} {told}{path} cannot be asked: {without_secrets(str(error))}. A url looks like http://127.0.0.1:8000.") from error
        except requests.RequestException as error:
            raise ValueError(f"{method} {told}{path}: no answer ({type(error).__name__}). Start the application (make up), or name its --url.") from error
        if not response.ok:
            try:
                problem = response.json()
                said = f"{problem['detail']} {' '.join(problem['errors'])} {problem['remedy']}"
            except (ValueError, KeyError):
                said = response.text[:500]
            raise ValueError(f"{method} {told}{path}: {response.status_code} {said}")
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise ValueError(f"{method} {told}{path}: the answer is no JSON, so this is not the application. Name its --url.") from error
        return answer
