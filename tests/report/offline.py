"""Reads the file of an offline W&B run."""

import time

BLOCK = 32768


def offline_file(folder):
    """The file of the newest offline run under `folder`."""
    return max(folder.glob("wandb/offline-run-*/run-*.wandb"))


def settled_records(folder, wait_s=60):
    """The records once the last of them, the exit, is there: W&B's service writes the file after `finish` has returned."""
    end = time.monotonic() + wait_s
    found = offline_records(folder)
    while not any(record.WhichOneof("record_type") == "exit" for record in found):
        assert time.monotonic() < end, f"no exit record after {wait_s} s, only {len(found)} records"
        time.sleep(0.1)
        found = offline_records(folder)
    return found


def offline_records(folder):
    """Every record of the newest offline run under `folder`, parsed by wandb's own protobuf classes.

    The file is a LevelDB log behind a header of 7 bytes: blocks of 32 KiB of chunks (crc 4, length 2, type 1: whole, first,
    middle, last). wandb 0.31 has no Python reader for it any more; its own `wandb sync` reads it in Go, and uploads.
    """
    from wandb.proto import wandb_internal_pb2

    raw, place, parts, records = offline_file(folder).read_bytes(), 7, [], []
    assert raw[:4] == b":W&B"
    while place + 7 <= len(raw):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        parts.append(raw[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records
