"""URLs without their secrets, for whatever a person or a log may see."""

import re
from typing import Any

#: Matches where a text goes on to another URL.
_ANOTHER = re.compile(r"[\s,;\"'(<|](?=[a-z][a-z0-9+.-]+://)", re.IGNORECASE)
#: Matches a text that begins with a URL, perhaps one that is assigned to something.
_BEGINS = re.compile(r"([\w.-]+=)*[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
#: Matches an address with a port, which is no user with a password: nobody is called 127.0.0.1.
_ADDRESS = re.compile(r"(localhost|\d+(\.\d+){3}|\[[\da-f:.]+\]):\d{1,5}(?![^\s/?#;,.:)\]}>'\"`!|\\])", re.I)
#: Matches a host, perhaps with a port, and not a user with a password that has lost its end.
_HOST = re.compile(r"(\[[^]\s]*\]|[^\s/?#:;@[\]]*)(:\d*:?)?(?![^\s/?#;,.)\]}>'\"`!|\\])")
#: Matches the scheme and bucket of an access point's URL.
_ARN = re.compile(r"^(s3a?://)arn(:[\w-]*)+(?=/)")
#: Matches each URL for which ``holds_secret`` may be true, and few others. Also an expression of RE2, for Arrow.
MAYBE_SECRET = r"(?s)^[A-Za-z][A-Za-z0-9+.:-]*://.*[@?#;:\[]"


def public_url(url: str) -> str:
    """Return the URL without user, password, query, parameters and fragment, any of which may hold a secret.

    A password may hold any character, percent escapes or not. So what stands between ``user:`` and the last ``@`` is
    taken for one, also where programs would read it as something else: ``http://store:80/a@b`` becomes ``http://b``.
    """
    return _without_secrets(url, blank="")


def holds_secret(url: str) -> bool:
    """Return whether a photo's URL holds what may be a secret, so that no row may repeat it.

    That is a user or a password, and over HTTP also a query, parameters or a fragment. Elsewhere ``?``, ``#`` and ``;``
    are letters of a file's name, and the colons of an S3 access point's ARN are no password's.
    """
    if not url.lower().startswith(("http://", "https://")):
        url = re.sub("[?#;]", "_", _ARN.sub(r"\1arn", url))
    return public_url(url) != url


def why(url: str, error: object) -> str:
    """Return a library's words in parentheses, or nothing if the URL holds a secret.

    Such words may repeat a part of the URL that no longer looks like one.
    """
    return f" ({error})" if public_url(url) == url else ""


def redacted(value: Any) -> Any:
    """Return a copy of a nested value with every URL in its strings replaced by its ``public_url``.

    Within a text a user name and a query end at white space. A password does not: it may reach to the last ``@``
    before the next URL. A text that begins with a URL, as an option's value does, may be nothing else: what may be a
    secret then ends at the next URL only.
    """
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return _without_secrets(value, blank=r"\s") if isinstance(value, str) else value


def _without_secrets(text: str, blank: str) -> str:
    """Return the text with the secrets of its URLs cut out. ``blank``: the characters that end a URL's part."""
    shown: list[str] = []
    within = blank
    begins = _BEGINS.match(text)
    while "://" in text:
        blank = "" if begins and not shown else within
        before, sign, text = text.partition("://")
        another = _ANOTHER.search(text) if within else None
        end = another.start() if another else len(text)
        # Up to the last @. Base64 has slashes, but no dots, by which a token is told from most hosts.
        letters = r"-\w+=" if blank else r"-\w+=\s"
        token = f"|[{letters}]*/[{letters}/]*" if before.endswith(("http", "https")) else ""
        user = re.compile(rf"([^{blank}/:]*(:.*)?{token})@", re.DOTALL)
        if not _ADDRESS.match(text):
            found = user.match(text, 0, end)
            if not found and not _HOST.match(text):  # a password that looks as if it held another URL
                found, end = user.match(text), len(text)
            if found:
                text, end = text[found.end() :], end - found.end()
        own, text = text[:end], text[end:]
        host = _HOST.match(own)
        place = re.compile(rf"((?!://)[^{blank}?#;]|;(?![^{blank}/;?#]*=))*").match(own)
        assert place is not None
        kept = place.end() if host else 0
        shown += [before, sign, own[:kept] if host else "..."]
        own = own[kept:]
        if not host or own.startswith(("?", "#", ";")):
            own = re.sub(rf"^[^{blank}]*" if blank else r"(?s)^.*", "", own)
        text = own + text
    return "".join([*shown, text])
