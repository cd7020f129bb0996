"""What a run was made with: every start's software and devices."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxpneumo.errors import InputError
from jaxpneumo.files import read_json, write_json
from jaxpneumo.software import software

FILE = "provenance.json"


def record_start(workdir: Path) -> None:
    """Adds this start of a run to provenance.json in its folder: when, with which software, on which devices."""
    import jax

    if jax.process_index() != 0:
        return
    devices = [device.device_kind for device in jax.devices()]
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
        "processes": jax.process_count(),
        **software(),
    }
    write_json(workdir / FILE, {"starts": [*read_starts(workdir), start]})


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; none where they were not recorded. Raises InputError when damaged."""
    path = workdir / FILE
    if not path.is_file():
        return []
    content = read_json(path)
    starts = content.get("starts") if isinstance(content, dict) else None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(f"{path} is damaged: it has no list of starts. Remove it to go on without.")
    return starts
