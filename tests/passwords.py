"""Passwords of any kind, and URLs to put them in."""

import string

import numpy as np

#: Places of a secret in a URL, and what may be shown of it.
PLACES = {
    "postgresql+psycopg2://mlflow:{}@db:5432/mlflow": "postgresql+psycopg2://db:5432/mlflow",
    "s3://key:{}@bucket/a@b.zip": "s3://b.zip",
    "redis://:{}@host": "redis://host",
    "https://me@home:{}@[::1]:80/a": "https://[::1]:80/a",
}

HARD = [
    "a@b@", "///", "://", "a://b", "p@s", "80/", "80 ", "8080", "80#x", "?x=", "#x;", ";t=", "%2F%40%", "[::1]",
    "a@b/c:d?e#f", "'\"'", "\\\\\\", "{}{}", "@@@", "127.0.0.1:80/", ": : ", "ab c://d", "\n\r\t",
]  # fmt: skip


def passwords(count: int) -> list[str]:
    """Hard ones, and random ones of 3 to 40 printable characters, white space included."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    return [*HARD, *("".join(rng.choice(list(string.printable), rng.integers(3, 41))) for _ in range(count))]
