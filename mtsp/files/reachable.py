"""Ask whether a server can be reached, before a library tries for minutes."""

import http.client
import threading
import urllib.error
import urllib.request

SECONDS = 4
"""Time to wait for an answer of a server."""


def why_unreachable(url: str) -> str:
    """Return why a server does not answer within :data:`SECONDS`, in a few words; "" if it answers."""
    answers: list[str] = []
    # In a thread, since looking up a host's name has no time limit of its own.
    thread = threading.Thread(target=lambda: answers.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(SECONDS + 1)
    return answers[0] if answers else f"no answer in {SECONDS} seconds"


def _ask(url: str) -> str:
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "mtsp"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403, 405, 429) else f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
