"""What W&B wrote offline, read back."""

import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record


def records(folder: Path) -> list[Record]:
    """What an offline part holds, by W&B's file format: blocks of 32 kB with records in pieces, after LevelDB's log."""
    (path,) = folder.rglob("*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # too little for a head
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last piece
            found.append(Record.FromString(whole))
            whole = b""
    return found
