"""Seeded bodies for fuzz tests: valid chat completions, and the same after a few random edits."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

PIECES = [
    *(bytes([b]) for b in b'"\\{}[]:, \t\r\n\x00\x0b\x1f\x7f\xff/\'0-'),
    b'"model":"evil"', b'"model":"evil",', b',"model":"evil"', b'{"model":"evil"}', b'"\\u006dodel":"evil",',
    b'"stream":true', b',"stream":true', b'"stream":false,', b'"str\\u0065am":true,', b'"stream":1,',
    b'"stream":"true",',
    b'"stream_options":{"include_usage":true},', b'"include_usage":true,', b'"include_usage":false',
    b'"include_usag\\u0065":true,', b"true", b"null", b"NaN", b"\xef\xbb\xbf", b"\\u00", b"/*", b"*/", b"//", b'"":',
    b'"a" "b"', b"}{", b"{]", b"[}", b'\\"', b"\\\\", b"\xc3", b"\xed\xa0\x80",
]  # fmt: skip
TEXTS = [
    "", "hello", 'say "model":"evil" now', "back\\slash\\", 'C:\\"', "für", "\n\t", '{"model":"evil"}', "\\u0022",
    '\\\\"', "😀",
]  # fmt: skip
WORDS = [True, False, None, 0, -1.5, 1e9, 12345678901234567890]


def value(random_: random.Random, depth: int = 0) -> object:
    """A random JSON value, nested at most four deep."""
    kind = random_.randrange(6 if depth < 4 else 4)
    if kind < 2:
        return random_.choice(TEXTS)
    if kind < 4:
        return random_.choice(WORDS)
    if kind == 4:
        return [value(random_, depth + 1) for _ in range(random_.randrange(4))]
    keys = ["model", "stream", "a", "content", 'q"', "b\\", "stream_options"]
    return {random_.choice(keys): value(random_, depth + 1) for _ in range(random_.randrange(4))}


MODELS = ("a", "clinical-summary", "org/name:7b", "openai.gpt-oss-120b-1:0")


def valid(random_: random.Random, models: Sequence[str] = MODELS, prompt: str = "") -> bytes:
    """A JSON object such as a client sends, its members in any order, some of them odd; `prompt` is in each message."""
    body = {
        "model": random_.choice(models),
        "messages": [{"role": "user", "content": prompt + random_.choice(TEXTS)} for _ in range(random_.randrange(3))],
    }
    if random_.random() < 0.7:
        body["stream"] = random_.choice([True, True, False, None])
    if random_.random() < 0.5:
        usage = random_.choice([True, False, None])
        body["stream_options"] = random_.choice([None, {}, {"include_usage": usage, "x": 1}])
    names = ["temperature", "tools", "metadata", "user", "x y", "", "é", "Model"]
    for name in random_.sample(names, random_.randrange(4)):
        body[name] = value(random_)
    members = list(body.items())
    random_.shuffle(members)
    separators = random_.choice([(",", ":"), (", ", ": "), (" ,\r\n", "\t: ")])
    text = json.dumps(dict(members), separators=separators, ensure_ascii=random_.random() < 0.5)
    return random_.choice(["", " ", "\r\n"]).encode() + text.encode() + random_.choice([b"", b"\n", b" \t"])


def mutated(random_: random.Random, models: Sequence[str] = MODELS, prompt: str = "") -> bytes:
    """A valid body after one to four edits: pieces inserted, bytes replaced, slices cut, repeated, re-encoded.

    The model `evil` of the inserted pieces is one of `models` where those are given.
    """
    body = valid(random_, models, prompt)
    for _ in range(random_.randrange(1, 5)):
        at, to = sorted((random_.randrange(len(body) + 1), random_.randrange(len(body) + 1)))
        to = min(to, at + random_.choice([1, 2, 8, 40]))
        edit = random_.randrange(8)
        if edit < 3:
            body = body[:at] + random_.choice(PIECES) + body[at:]
        elif edit == 3:
            body = body[:at] + random_.choice(PIECES) + body[to:]
        elif edit == 4:
            body = body[:at] + body[to:]
        elif edit == 5:
            other = random_.randrange(len(body) + 1)
            body = body[:other] + body[at:to] + body[other:]
        elif edit == 6:
            # Edits inside the grammar: a comma becomes a whole further member, which bytewise edits seldom hit.
            body = body.replace(b",", b"," + random_.choice(PIECES) + b",", 1)
        elif random_.random() < 0.1:
            body = body[:at] if random_.random() < 0.7 else body.decode("utf-8", "replace").encode("utf-16-le")
    return body if models is MODELS else body.replace(b'"evil"', b'"%s"' % random_.choice(models).encode())


def bodies(seed: int, count: int) -> Iterator[bytes]:
    """`count` bodies, one in ten of them valid; the same ones for the same seed."""
    random_ = random.Random(seed)
    for index in range(count):
        yield valid(random_) if index % 10 == 0 else mutated(random_)
