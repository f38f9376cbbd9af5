"""No secret of a URL is in what is shown of it, whatever its characters and the text around it."""

import re

import pytest

from glefld.redaction import MAYBE_SECRET, holds_secret, public_url, redacted
from tests.passwords import PLACES, passwords

PUBLIC = {
    "a local path": ("/data/photos?.zip", "/data/photos?.zip"),
    "a user and a password": ("s3://key:secret@bucket/a.zip", "s3://bucket/a.zip"),
    "a user alone": ("https://secret@host/a", "https://host/a"),
    "a password alone": ("redis://:secret@host/0", "redis://host/0"),
    "a user with an at sign": ("https://me@home:secret/x@host/a", "https://host/a"),
    "a slash in the password": (
        "postgresql://mlflow:abc/def+gh==@db:5432/mlflow",
        "postgresql://db:5432/mlflow",
    ),
    "an at sign in the password": ("https://user:secret@1@host/a", "https://host/a"),
    "a password that looks like a port": ("mysql://user:80/secret@host/a", "mysql://host/a"),
    "a password without its end": ("postgresql://user:secret", "postgresql://..."),
    "a signed query": ("https://host/a.zip?X-Amz-Signature=secret", "https://host/a.zip"),
    "a password in the query": ("https://host/a?pwd=a b/secret@host", "https://host/a"),
    "a key in the query": ("https://host/a?auth=secret", "https://host/a"),
    "a token in the query": ("https://host/a?jwt=secret;x#y", "https://host/a"),
    "a token in the parameters": ("https://host/a;token=secret/b", "https://host/a"),
    "a token in the fragment": ("https://host/a#access_token=secret", "https://host/a"),
    "a URL within a URL": ("simplecache::s3://key:secret@bucket/a", "simplecache::s3://bucket/a"),
    "a URL in the path": ("https://host/http://user:secret@b/c", "https://host/http://b/c"),
    "a database's file": ("sqlite:////data/a:b@c.db", "sqlite:////data/a:b@c.db"),
    "an at sign in a name": ("s3://bucket/a@2x;b.png", "s3://bucket/a@2x;b.png"),
    "an address with a port": ("http://127.0.0.1:8333/a@2x.png", "http://127.0.0.1:8333/a@2x.png"),
    "an address in brackets": ("http://[::1]:8333/a@2x.png", "http://[::1]:8333/a@2x.png"),
    "no URL at all": ("http://[secret/a", "http://..."),
    "a slash in a token": ("https://ghp/sec+ret/x==@host/a", "https://host/a"),
    "a port that is none": ("ftp://user:secret/x@host", "ftp://host"),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_a_public_url_keeps_the_place_and_drops_the_secret(case: str) -> None:
    url, expected = PUBLIC[case]
    assert public_url(url) == expected
    assert public_url(expected) == expected


#: Texts around a URL, each with what is shown of it.
AROUND = {
    "{}": "{}",
    "cannot read {}": "cannot read {}",
    "('{}', 'b')": "('{}', 'b')",
    "MLFLOW_TRACKING_URI={} cannot be used: no such host": "MLFLOW_TRACKING_URI={} cannot be used: no such host",
    "from http://store:9000 to\n{}, then s3://k:x@bucket/c": "from http://store:9000 to\n{}, then s3://bucket/c",
    "/data/a:b@c.jpg: {}": "/data/a:b@c.jpg: {}",
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_shown_depends_on_a_password(place: str) -> None:
    """Whatever its characters and wherever its URL stands, so not even a part of it can be told."""
    url, shown = place, PLACES[place]
    for password in passwords(300):
        given = url.replace("{}", password)
        assert public_url(given) == shown, password
        for text, expected in AROUND.items():
            assert redacted([{"why": text.replace("{}", given)}]) == [
                {"why": expected.replace("{}", shown)}
            ], password


@pytest.mark.parametrize("before", ["?pwd=", "?a=b&auth=", "?jwt=", ";token=", "#access_token="])
def test_nothing_shown_depends_on_a_query(before: str) -> None:
    """Within a text it ends at white space, so that the words after it can be read. A URL alone has no such words."""
    for secret in passwords(300):
        assert public_url(f"https://host/a{before}{secret}") == "https://host/a", secret
        for name in ("", "--source=", "vgg16="):
            assert redacted(f"{name}https://host/a{before}{secret}") == f"{name}https://host/a", secret
        solid = "".join(secret.split())
        assert redacted(f"'https://host/a{before}{solid}' and more") == "'https://host/a and more", secret


HARMLESS = (
    "cannot read /data/a:b@c.jpg: [Errno 2] No such file or directory: '/data/a:b@c.jpg'",
    "s3://bucket/photos/a@2x.png: HTTP 404 (Not Found), as was s3://bucket/b:c@d.jpg",
    "there is no bucket glefld at http://store:9000: create it, or check its name and AWS_ENDPOINT_URL",
    "MLflow at http://127.0.0.1:5000 has no models:/fld-gle@champion: give models:/NAME@ALIAS",
    "there is no models:/fld-gle@champion in MLflow at http://mlflow:5000: not found",
    "nothing answers at http://head:8265, so give --address http://HEAD:8265.",
    "sqlite:////data/a b/mlflow.db cannot be opened; ask me@home.org",
    "see http://[fe80::1]:80/a: line 3, column 4; 'x' (s3://bucket).",
    "what? 3:4 and ://, me@home.org",
)


@pytest.mark.parametrize("token", ["ghp_secret", "se/cret", "se//cret==", "se/c ret", "se cret", "se\n/cret"])
def test_nothing_shown_depends_on_a_token(token: str) -> None:
    """Nor where it has slashes. Within a text it has no white space."""
    assert public_url(f"https://{token}@host/a.zip") == "https://host/a.zip"
    assert redacted({"source": f"https://{token}@host/a.zip"}) == {"source": "https://host/a.zip"}
    solid = "".join(token.split())
    assert redacted(f"'https://{solid}@host/a.zip' is there") == "'https://host/a.zip' is there"


#: URLs of photos, and whether a row may not repeat them.
HELD = {
    "/data/a:b@c?d.jpg": False,
    "s3://bucket/a@2x#1;b?.jpg": False,
    "s3://bucket/a:b@c.jpg": False,
    "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/photos/a.jpg": False,
    "https://photos.host/a@2x.jpg": False,
    "https://host/a.jpg?token=secret": True,
    "https://host/a.jpg#secret": True,
    "s3://key:secret@bucket/a.jpg": True,
    "s3://key:sec/ret@bucket/a.jpg": True,
    "s3://key:sec?ret@bucket/a.jpg": True,
    "ftp://secret@host/a.jpg": True,
    "s3://key:secret": True,
    "simplecache::s3://key:secret@bucket/a.jpg": True,
}


@pytest.mark.parametrize("url", HELD)
def test_a_photos_url_with_a_secret_is_told_from_an_odd_name(url: str) -> None:
    assert holds_secret(url) == HELD[url]
    assert re.match(MAYBE_SECRET, url) or not HELD[url]


@pytest.mark.parametrize(
    "place", ["s3://key:{}@bucket/a.jpg", "ftp://me:{}@host/a.jpg", "https://host/a?b={}"]
)
def test_any_password_in_a_photos_url_is_found(place: str) -> None:
    for password in passwords(300):
        url = place.replace("{}", password)
        assert holds_secret(url), password
        assert re.match(MAYBE_SECRET, url), password


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_texts_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text
