"""Seeded changes of values, trees, texts, bytes, archives and images, each with a description of what was done."""

import io
import json
import math
import zipfile
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
from hostile import CALLS
from PIL import Image

SCALARS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 0.5, -0.5, 1.5, 1e-9, 1e-300, 1e9, 1e300, 2**31, 2**32, 10**30, math.nan, math.inf, -math.inf,
    True, False, None, "", "abc", "²", "é", "🚗", "a b", "a\nb", "\x07", "\x1b[2J", "a/b", "../x", "mean", "1", "1.0",
    "nan",
    "true", "null", "[1]", "s3://bucket/x", "x" * 5000, [], {}, [1], [0, 0], [math.nan], [[1, 2], [3]], ["a", "a"],
    {"a": 1},
    {"": None}, [None], [True, False], *CALLS,
)  # fmt: skip
"""Values of every kind and size, whatever is meant."""

TYPED = (*(v for v in SCALARS if v not in CALLS), "${seed}", "${nope}", "${", "\\${seed}", "???")
"""For a command line, on which a user's own interpolations may call what they like."""

SMALL = tuple(v for v in TYPED if not (isinstance(v, int | float) and abs(v) > 64))
"""Those which ask for no large amount of work where they are valid."""


def value(random: Random, given: Any, pool: tuple[Any, ...] = SCALARS) -> Any:
    """Another value instead of one: near it, of another type, or from the pool."""
    near: list[Any] = []
    if isinstance(given, bool):
        near = [not given, int(given), str(given)]
    elif isinstance(given, int | float):
        near = [-given, given + 1, given - 1, given / 2, given * 1.5, float(given), str(given), [given], {"a": given}]
        near += [int(given) if math.isfinite(given) else 0, given * (2 if pool is SMALL else 1e6)]
    elif isinstance(given, str):
        near = [given + "x", given[:-1], given.upper(), f" {given}", [given], given + "\n", near_miss(random, given)]
    elif isinstance(given, list):
        near = [given[:-1], [*given, *given[-1:]], given[::-1], [given], dict.fromkeys(map(str, given), 1)]
        near += [[value(random, given[0], pool), *given[1:]]] if given else []
    elif isinstance(given, dict):
        near = [dict(list(given.items())[:-1]), {**given, "extra": 1}, list(given.items()), list(given)]
    return random.choice(near) if near and random.random() < 0.5 else random.choice(pool)


def near_miss(random: Random, name: str) -> str:
    """A name with a slip of the keyboard in it."""
    if len(name) < 2:
        return name + "x"
    at = random.randrange(len(name) - 1)
    return random.choice(
        [
            name[:at] + name[at + 1 :],
            name[:at] + name[at] + name[at:],
            name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        ]
    )


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all nodes of a tree, the root left out."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    """The node at a path."""
    for key in path:
        node = node[key]
    return node


def tree(random: Random, given: Any) -> tuple[Any, str]:
    """A copy of plain values with one node deleted, doubled, renamed or changed."""
    copy = json.loads(json.dumps(given))
    path = random.choice(list(places(copy)))
    parent, key = at(copy, path[:-1]), path[-1]
    where = ".".join(map(str, path))
    kind = random.choice(["change", "change", "change", "change", "delete", "double", "rename", "swap"])
    if kind == "delete":
        del parent[key]
    elif kind == "double" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == "rename" and isinstance(parent, dict):
        new = near_miss(random, str(key))
        parent[new] = parent.pop(key)
        where += f" → {new}"
    elif kind == "swap" and len(parent) > 1:
        other = random.choice([k for k in (parent if isinstance(parent, dict) else range(len(parent))) if k != key])
        parent[key], parent[other] = parent[other], parent[key]
        where += f" ↔ {other}"
    else:
        kind, old = "change", parent[key]
        parent[key] = value(random, old)
        where += f": {old!r:.60} → {parent[key]!r:.60}"
    return copy, f"{kind} {where}"


def text(random: Random, given: bytes) -> tuple[bytes, str]:
    """A text file as other programs, editors and accidents leave it."""
    kind = random.choice(
        ["cut", "bom", "utf-16", "latin-1", "crlf", "nul", "empty", "doubled", "spaces", "deep", "line"]
    )
    decoded = given.decode("utf-8", "replace")
    lines = decoded.splitlines(keepends=True) or [""]
    number = random.randrange(len(lines))
    changed = {
        "cut": given[: random.randrange(len(given) + 1)],
        "bom": b"\xef\xbb\xbf" + given,
        "utf-16": decoded.encode("utf-16"),
        "latin-1": (decoded + "é").encode("latin-1", "replace"),
        "crlf": decoded.replace("\n", "\r\n").encode(),
        "nul": given[: len(given) // 2] + b"\0" + given[len(given) // 2 :],
        "empty": b"",
        "doubled": given + given,
        "spaces": b" \n\t" + given + b"\n\n",
        "deep": b"[" * 100_000,
        "line": "".join(
            [*lines[:number], random.choice(["", "x\n", lines[number] * 2]), *lines[number + 1 :]]
        ).encode(),
    }
    return changed[kind], kind


def data(random: Random, given: bytes) -> tuple[bytes, str]:
    """Bytes with bits flipped, pieces lost or put in."""
    kind = random.choice(["flip", "flip", "flip", "cut", "zeros", "insert", "drop", "append", "empty", "noise"])
    size = max(len(given), 1)
    start, length = random.randrange(size), random.choice([1, 4, 64, 512])
    changed = bytearray(given)
    if kind == "flip":
        for _ in range(random.choice([1, 1, 3, 20])):
            if changed:
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del changed[start:]
    elif kind == "zeros":
        changed[start : start + length] = bytes(len(changed[start : start + length]))
    elif kind == "insert":
        changed[start:start] = random.randbytes(length)
    elif kind == "drop":
        del changed[start : start + length]
    elif kind == "append":
        changed += random.randbytes(length)
    elif kind == "empty":
        changed.clear()
    else:
        changed[start : start + length] = random.randbytes(len(changed[start : start + length]))
    return bytes(changed), f"{kind} at {start}, {length}"


def archive(random: Random, given: bytes) -> tuple[bytes, str]:
    """A zip file written anew with one member tampered with."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(given)) as source:
        names = source.namelist()
        chosen = random.choice(names)
        kind = random.choice(["drop", "double", "rename", "outside", "compress", "swap", "extra", "resize", "comment"])
        with zipfile.ZipFile(out, "w") as target:
            for name in names:
                content = source.read(name)
                if name == chosen:
                    if kind == "drop":
                        continue
                    if kind == "swap":
                        content = source.read(random.choice(names))
                    if kind == "resize":
                        content = content[: len(content) // 2] if random.random() < 0.5 else content * 2
                    if kind == "double":
                        target.writestr(f"{name} ", content)
                renamed = {"rename": name + "x", "outside": f"../../{name}"}.get(kind, name) if name == chosen else name
                packed = kind == "compress" and name == chosen
                target.writestr(renamed, content, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
            if kind == "extra":
                target.writestr("archive/extra.py", "import os; os.mkdir('canary')")
            if kind == "comment":
                target.comment = b"x" * 1000
    return out.getvalue(), f"{kind} {chosen}"


def image(random: Random, given: bytes) -> tuple[bytes, str]:
    """An image file of another mode, size, format or frame count, or damaged."""
    if random.random() < 0.5:
        return data(random, given)
    with Image.open(io.BytesIO(given)) as opened:
        image = opened.copy()
    mode = random.choice(["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "F", "YCbCr", "RGB"])
    width, height = image.size
    size = random.choice(
        [(width, height)] * 3 + [(height, width), (1, 1), (width + 1, height), (width // 2, height // 2)]
    )
    kind = random.choice(["PNG", "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
    image = image.convert("RGB").resize(size)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    out = io.BytesIO()
    try:
        image.save(out, format=kind)
    except (OSError, ValueError, KeyError):
        kind, out = "PNG", io.BytesIO()
        image.convert("RGB").save(out, format=kind)
    return out.getvalue(), f"{kind} {mode} {size[0]}x{size[1]}"
