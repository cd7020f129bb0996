"""index.html: the results of a prediction as one page for a browser, which needs no network.

The page's rows are data; its script draws a few dozen of them at a time. So thousands of rows stay usable. It shows
image ids, but no names of files, except of those that were set aside and have no id.
"""

import base64
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
from jaxpneumo.predict.results_table import FOUND, NOTHING, SET_ASIDE, ResultRow
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import safe_name

MOST = 20_000  # rows of the page, those with the highest scores; results.csv has all
RESULTS = (FOUND, NOTHING, SET_ASIDE)


def write_page(path: Path, rows: Iterable[ResultRow], header: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Writes the page, atomically.

    Args:
      path: the page.
      rows: the result of `results_table.write_table`; all are taken.
      header: the first line of the manifest.
      folders: for each manifest its folder, which has the pictures with outlines below `overlays`.

    Raises:
      InputError: a result is not a number, as in a manifest of an earlier version.
    """
    counts: Counter[str] = Counter()

    def counted() -> Iterator[ResultRow]:
        for row in rows:
            counts[row.result] += 1
            yield row

    # Files set aside have no score and come last; rows of one score stay in the order of their files.
    shown = heapq.nlargest(MOST, counted(), key=lambda row: -1.0 if row.score is None else row.score)
    bands = header.get("bands")
    data = {
        "total": counts.total(),
        "facts": _facts(header),
        "bands": bands and {**bands, "low": round(bands["low"], 4), "high": round(bands["high"], 4)},
        "synthetic": SYNTHETIC_NOTE in header.get("note", ""),
        "results": RESULTS,
        "pictures": [quote(f"{os.path.relpath(folder, path.parent)}/overlays/") for folder in folders],
        **_compact(shown),
    }
    script, style = (_read(f"results_page.{kind}") for kind in ("js", "css"))
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:  # of an older manifest; browsers take no NaN
        raise InputError(f"{path}: a result is not a number. Predict again, with another --output.") from None
    page = Template(_read("results_page.html")).substitute(
        style=style,
        script=script,
        # The hash lets the page run only this script, even if a value on the page contains another one.
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # "</script>" in an id would end the data.
        data=text.replace("<", "\\u003c"),
    )
    with write_atomically(path) as file:
        file.write(page)


def _facts(header: Mapping[str, Any]) -> str:
    """What made the results, in words: model, thresholds and gate."""
    settings = header.get("settings", {})
    facts = [f"{_models(header)}{_thresholds(settings)}"]
    if gate := settings.get("gate"):
        facts.append(f"images stay empty where the gate outlines nothing: {_models(gate)}{_thresholds(gate)}")
    return " · ".join(facts)


def _models(record: Mapping[str, Any]) -> str:
    models = [one[:12] for one in str(record.get("model", "")).split("+")]
    return f"{'models' if len(models) > 1 else 'model'} {', '.join(models)}"


def _thresholds(settings: Mapping[str, Any]) -> str:
    known = all(name in settings for name in saved_thresholds.NAMES)
    return f", {saved_thresholds.words(settings)}" if known else ""


def _compact(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """The rows as short lists, and the texts that they name by their number."""
    texts: dict[str, int] = {"": 0}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    short = [
        [
            row.id or row.file,
            RESULTS.index(row.result),
            number(row.certainty),
            None if row.score is None else round(row.score, 4),
            row.area,
            None if row.area_mm2 is None else round(row.area_mm2),
            row.largest,
            None if row.largest_mm2 is None else round(row.largest_mm2),
            number(row.side),
            number(row.why),
            number(row.emptied_by),
            row.picture,
            # The picture is called by the id, unless a file cannot have this name.
            name if (name := safe_name(row.id)) != row.id else 0,
        ]
        for row in rows
    ]
    return {"texts": [*texts], "rows": short}


def _read(name: str) -> str:
    return resources.files("jaxpneumo.predict").joinpath(name).read_text("utf-8")
