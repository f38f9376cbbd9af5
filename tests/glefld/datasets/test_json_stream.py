"""Reading a JSON object in pieces: the same as in one, wherever a piece ends, and never half a file without a word."""

import io
import json
import random
from typing import Any

import pytest

from glefld.datasets import json_stream
from glefld.errors import UserError


def put_together(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, kind, value in json_stream.parts(io.BytesIO(data), "a.json"):
        if kind == "list":
            found[key] = []
        elif kind == "element":
            found[key].append(value)
        else:
            found[key] = value
    return found


def random_value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind < 6:
        text = "".join(rng.choice('ab"\\[]{},:\n\té京 ') for _ in range(rng.randrange(6)))
        return [None, True, rng.randrange(-(10**6), 10**6), rng.uniform(-1e9, 1e9), text, 1e-7][kind]
    if kind == 6:
        return {f"k{i}": random_value(rng, depth - 1) for i in range(rng.randrange(4))}
    return [random_value(rng, depth - 1) for _ in range(rng.randrange(5))]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_json_reads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(60):
        value = {f"key{i}": random_value(rng) for i in range(rng.randrange(5))}
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        monkeypatch.setattr(json_stream, "CHUNK", rng.randrange(1, 9))
        assert put_together(text.encode()) == value
        assert put_together(b"\xef\xbb\xbf  " + text.encode() + b"\n") == value


def test_a_file_that_is_cut_off_anywhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps({"images": [{"id": 1.5}, -7], "info": {"a": "é"}, "licenses": []}).encode()
    monkeypatch.setattr(json_stream, "CHUNK", 3)
    for end in range(len(data)):
        with pytest.raises(UserError, match=r"^a\.json is not"):
            put_together(data[:end])
        if end:
            with pytest.raises(UserError, match=r"^a\.json is not"):
                put_together(data[end:])


def test_an_element_without_end_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(json_stream, "MOST", 1000)
    file = io.BytesIO(b'{"images": [{"name": "' + b"x" * 1_000_000)
    pieces = json_stream.parts(file, "a.json")
    with pytest.raises(UserError, match="more than 1000 characters"):
        list(pieces)
