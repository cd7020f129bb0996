"""What a run was made with: every start's software and devices, and whether its radiographs are synthetic."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxpneumo.data import dataset
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.software import software
from jaxpneumo.run.config import Config, read_config

FILE = "provenance.json"


def record_start(workdir: Path, config: Config) -> None:
    """Adds this start of a run to provenance.json in its folder: when, with which software and data, on which devices.

    Args:
      workdir: the run's folder.
      config: the run's.
    """
    import jax

    if jax.process_index() != 0:
        return
    devices = [device.device_kind for device in jax.devices()]
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
        "processes": jax.process_count(),
        "synthetic": bool(dataset.read_info(config.data.directory).get("synthetic")),
        "data": data_checksums(config),
        **software(),
    }
    write_json(workdir / FILE, {"starts": [*read_starts(workdir), start]})


def data_checksums(config: Config) -> dict[str, str]:
    """The SHA-256 of what a run is trained on, by file: labels, and the arrays of its stages' sizes.

    Not of index.csv, whose pseudonyms of patients are others in every preparation.
    """
    sums = dataset.read_info(config.data.directory).get("sha256", {})
    sizes = sorted({stage.size for stage in config.stages})
    names = ["labels.csv", *(f"{kind}_{size}.npy" for size in sizes for kind in ("images", "masks"))]
    return {name: sums[name] for name in names if name in sums}


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


def trained_on_synthetic(workdir: Path) -> bool:
    """Whether a run was trained on synthetic radiographs.

    The run's starts say so. For a run whose starts do not yet, its evaluation or its data set is asked, and where
    these are gone, whether its config draws its data.

    Raises:
      InputError: the folder is no run, or provenance.json is damaged.
    """
    told = [start["synthetic"] for start in read_starts(workdir) if "synthetic" in start]
    if told:
        return any(told)
    config = read_config(workdir)
    directory = Path(config.data.directory)
    with suppress(InputError, KeyError, TypeError):
        data = read_json(workdir / "evaluation/summary.json")["data"]
        if data["directory"] == directory.name:  # a run may have been evaluated on other data since
            return bool(data["synthetic"])
    with suppress(InputError):
        return bool(dataset.read_info(directory).get("synthetic"))
    return config.data.synthetic is not None
