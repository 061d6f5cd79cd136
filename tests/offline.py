"""W&B's offline runs read back from its own files.

A ``.wandb`` file is a log in LevelDB's format (32 KiB blocks; records of CRC, length, kind,
payload) whose payloads are ``wandb_internal.Record`` messages.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitsweep import tracking
from bitsweep.store import Store
from bitsweep.tracking import wandb as wandb_tracking

BLOCK, HEADER, FIRST = 32768, 7, 7  # the file itself begins with seven bytes of its own


def log_out(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No login of this machine, no setting of its user's, nothing that an earlier test learnt."""
    for name in list(os.environ):
        if name.startswith("WANDB_") and name != "WANDB_SERVICE":  # its process's own
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(folder / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder / "no-config"))
    monkeypatch.setattr(wandb_tracking, "_state", wandb_tracking._State())
    monkeypatch.setattr(tracking, "_hinted", set())


def told_of_the_machine(store: Store, folder: Path) -> str:
    """A Record of ``store`` names a folder below ``folder`` wherever it can; that folder."""
    hidden = str(folder / "models")
    record, place = store.records()[0], f"{hidden}/my <private> model"
    record.point["model"] = place
    record.model["path"] = place
    record.provenance["command"] = f"bitsweep run model.path='{place}' bits=8"
    store.put(record, [])
    return hidden


def messages(path: Path) -> Iterator[Any]:
    """The protobuf messages of one ``.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    body, at, payload = path.read_bytes(), FIRST, b""
    while at + HEADER <= len(body):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(body[at + 4 : at + 6], "little"), body[at + 6]
        payload += body[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            message = Message()
            message.ParseFromString(payload)
            yield message
            payload = b""


def read(folder: Path) -> dict[str, Any]:
    """One run folder as a dict: id, group, job_type, tags, config, summary, exit code."""
    run: dict[str, Any] = {"config": {}, "summary": {}, "logged": {}}
    for message in (m for path in folder.glob("*.wandb") for m in messages(path)):
        kind = message.WhichOneof("record_type")
        if kind == "run":
            run |= {
                "id": message.run.run_id,
                "name": message.run.display_name,
                "group": message.run.run_group,
                "job_type": message.run.job_type,
                "project": message.run.project,
                "tags": list(message.run.tags),
            }
            run["config"] |= {i.key: json.loads(i.value_json) for i in message.run.config.update}
        elif kind == "summary":
            for item in message.summary.update:
                key = item.key or "/".join(item.nested_key)
                run["summary"][key] = json.loads(item.value_json)
        elif kind == "history":
            for item in message.history.item:
                run["logged"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "exit":
            run["exit_code"] = message.exit.exit_code
    return run


def artifacts(folder: Path) -> list[Any]:
    """The artifacts that one run folder logs, with what their manifests list."""
    found = []
    for message in (m for path in folder.glob("*.wandb") for m in messages(path)):
        if message.WhichOneof("record_type") == "artifact":
            found.append(message.artifact)
        elif message.request.HasField("log_artifact"):
            found.append(message.request.log_artifact.artifact)
    return found


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every run, read when W&B's own process has written its last message."""
    deadline = time.monotonic() + 20
    while True:
        found = [read(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]
        if all("exit_code" in run for run in found):
            return found
        assert time.monotonic() < deadline, "W&B did not finish writing"
        time.sleep(0.05)
