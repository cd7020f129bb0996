"""`jaxpneumo dicomweb`: fetches radiographs from a DICOMweb service, predicts them, and stores the results there."""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from jaxpneumo.predict import dicom_results
from jaxpneumo.predict.dicom_results import KINDS, dicom_outputs
from jaxpneumo.predict.predict import predict_files
from jaxpneumo.process import jsonl, places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_atomically, write_json
from jaxpneumo.process.errors import DONE, FAILED, GO_ON, PARTIAL, InputError
from jaxpneumo.process.files import read_json, stamp
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.ranges import BATCH, as_typed, did_you_mean
from jaxpneumo.run.config_values import VALUES
from jaxpneumo.serve import chosen_model
from jaxpneumo.serve.accepted import is_uid
from jaxpneumo.serve.chosen_model import ModelOptions
from jaxpneumo.serve.guard import is_loopback
from jaxpneumo.serve.optional import library
from jaxpneumo.serve.partners import Tls, url_problem

IMAGES, STORED, SERVICE = "images", "stored.jsonl", "service.json"
DEFAULT = ("sr", "seg")
VARIABLE = "JAXPNEUMO_DICOMWEB"
# An object that a service cannot deliver or take is set aside. After so many in a row the service itself is asked for.
MOST_UNREACHED = 3
# What may be asked for. Command lines are recorded, so they must not name patients.
FILTERS = ("StudyDate", "StudyTime", "Modality", "ModalitiesInStudy", "BodyPartExamined", "SeriesInstanceUID")

logger = logging.getLogger(__name__)

HELP = f"""\
Fetches the radiographs of studies from a DICOMweb service, outlines pneumothorax, and with --store sends the results
back. Not a medical device.

It writes to --output
  images/        the radiographs as the service stores them, UID.dcm
  ...            what `jaxpneumo predict` writes of the radiographs that match, and the results of --dicom
  stored.jsonl   the results that the service has
  service.json   the address of the service; a folder is for one service alone

After a stop or a kill, give the same command again: it continues where it stopped. It contacts the address of --url and
no other. A user and password, or a token, are in the environment variable {VARIABLE} (user:password) or in a file:
--credentials FILE. Name studies by UID; --query knows {", ".join(FILTERS[:4])},
{" and ".join(FILTERS[4:])}.

examples:
  jaxpneumo dicomweb --url https://pacs.example.org/dicom-web --study 1.2.840.1 --workdir runs/exp5 --output out
  jaxpneumo dicomweb --url http://127.0.0.1:8042/dicom-web --query StudyDate=20261101-20261130,Modality=CR \\
    --workdir runs/exp5 --output out --dicom sr,seg --store
"""
T = TypeVar("T")


def fetch_all(client: Any, found: Sequence[Any], folder: Path, quiet: bool = False) -> list[str]:
    """Fetches the radiographs that are not in a folder yet, as UID.dcm.

    Args:
      client: of the service.
      found: what `dicomweb.find` found.
      folder: made if it is missing.
      quiet: shows no progress bar.

    Returns:
      For each that could not be fetched, its UID and why.

    Raises:
      ConnectionError: the service cannot be reached. What was fetched is kept.
    """
    web = library("dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [each for each in found if not (folder / f"{each.uid}.dcm").exists()]
    run_report.skipped("radiographs fetched by an earlier start", len(found) - len(missing))

    def fetch(each: Any) -> str:
        try:
            data = web.fetch(client, each)
        except web.RefusedError as error:
            return str(error)
        with write_atomically(folder / f"{each.uid}.dcm", "wb") as file:
            file.write(data)
        return ""

    with progress_bar(missing, description="fetch", quiet=quiet) as bar:
        return _one_by_one(client, ((each.uid, each) for each in bar), fetch, len(found))


def store_all(client: Any, paths: Sequence[Path], journal: Path, quiet: bool = False) -> list[str]:
    """Stores results that a service does not have yet, by a journal of JSON lines.

    Args:
      client: of the service.
      paths: DICOM files.
      journal: notes each one that was stored, with its size and time of change; made if it is missing.
      quiet: shows no progress bar.

    Returns:
      For each that was not taken, its path and why.

    Raises:
      ConnectionError: the service cannot be reached, or did not answer as it should. What was stored is noted.
    """

    def entry(path: Path) -> dict[str, Any]:
        return {"url": client.base_url, "file": str(path), "stamp": list(stamp(path))}

    with open(journal, "a+b") as file:
        file.seek(0)
        noted = list(jsonl.read(file))
        file.truncate(noted[-1][1] if noted else 0)  # a line that a kill cut short
        writer = jsonl.Writer(file)
        known = {json.dumps(there) for there, _ in noted}
        missing = [path for path in paths if json.dumps(entry(path)) not in known]

        def store(path: Path) -> str:
            reason = library("dicomweb").store(client, path)
            if not reason:
                writer.append(entry(path), safe=True)
            return reason

        with progress_bar(missing, description="store", unit="result", quiet=quiet) as bar:
            return _one_by_one(client, ((str(path), path) for path in bar), store, len(paths))


def _one_by_one(client: Any, named: Iterable[tuple[str, T]], act: Callable[[T], str], count: int) -> list[str]:
    """Does something with each of `count` things, by name, some of which may be left out as they are done.

    Args:
      client: of the service.
      named: name and thing.
      act: says why it failed, or "". It raises ConnectionError where the connection fails.
      count: of all things; where each of them fails, the service is asked for, however few they are.

    Returns:
      For each that failed, its name and why.

    Raises:
      ConnectionError: after MOST_UNREACHED in a row the service does not answer anything else either.
    """
    problems, unreached = [], 0
    for name, thing in named:
        try:
            reason, unreached = act(thing), 0
        except ConnectionError as error:
            reason, unreached = str(error), unreached + 1
            if unreached >= min(MOST_UNREACHED, count):
                library("dicomweb").reach(client)
                unreached = 0
        if reason:
            problems.append(f"{name}: {reason}")
    return problems


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP. Returns 0, or 3 if files were set aside or results were not taken."""
    parser = Parser(prog="jaxpneumo dicomweb", description=HELP)
    add = parser.add_argument
    add("--url", required=True, help="address of the DICOMweb service")
    add("--study", type=_uid, metavar="UID", help="Study Instance UID of the radiographs")
    add("--query", type=_filters, metavar="NAME=VALUE,...", help="radiographs that match, of all studies or of --study")
    chosen_model.add_arguments(parser)
    add("--output", type=places.folder_to_fill, required=True, help="folder to write to")
    help_of_dicom = f"DICOM results to write: {','.join(KINDS)} (default with --store: {','.join(DEFAULT)})"
    add("--dicom", type=dicom_results.kinds, metavar="KINDS", help=help_of_dicom)
    add("--store", action="store_true", help="send the results to the service")
    add("--credentials", type=places.path, metavar="FILE", help=f"user:password, or a token (default: ${VARIABLE})")
    add("--authorities", type=places.path, metavar="FILE", help="certificates that the service's is signed by, PEM")
    add(
        "--overlays",
        type=VALUES["predict.overlays"],
        help="write at most this many pictures with outlines (default: all)",
    )
    add("--batch-size", type=BATCH, help="radiographs per call of the network (default: the run's)")
    options = parser.parse_args(arguments)

    if options.study is None and options.query is None:
        raise InputError("name radiographs with --study UID, with --query NAME=VALUE, or with both.")
    if problem := url_problem(options.url):
        raise InputError(f"--url {problem}.")
    parts = urlsplit(options.url)
    if options.authorities:
        if parts.scheme != "https":
            raise InputError("--authorities is for addresses of https, and --url is one of http. Give that of https.")
        try:
            Tls(authorities=options.authorities).client()
        except OSError as error:
            raise InputError(f"--authorities {options.authorities} cannot be used: {error}.") from error
    if options.dicom or options.store:
        dicom_results.check_installed()
    _check_service(options.output, options.url)
    run_report.place(options.output)
    model = chosen_model.read_options(options)
    credentials = _credentials(options.credentials)
    if credentials and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        logger.warning("--url is an address of http: the credentials can be read on the way. Use one of https.")
    client = library("dicomweb").connect(options.url.rstrip("/"), credentials, Tls(authorities=options.authorities))
    try:
        return _pull(client, options, model)
    except ConnectionError as error:
        run_report.failed(error)
        print(f"jaxpneumo: {error}. What was fetched and stored is kept. {GO_ON}", file=sys.stderr)
        return FAILED


def _pull(client: Any, options: argparse.Namespace, model: ModelOptions) -> int:
    found, others, partial = library("dicomweb").find(client, options.study, options.query or {})
    print(f"{len(found)} radiographs match; {others} objects of other kinds are left alone.")
    if not found:
        said = f"{partial}. " if partial else ""
        raise InputError(f"{options.url} has no radiographs that match. {said}Try another --study or --query.")
    write_json(options.output / SERVICE, {"url": options.url.rstrip("/")})
    problems = fetch_all(client, found, options.output / IMAGES)
    problems += [partial] if partial else []
    # The folder may hold radiographs of earlier queries too. Only those of this one are predicted and stored.
    sources = sorted(name for each in found if (options.output / IMAGES / (name := f"{each.uid}.dcm")).exists())
    if not sources:
        raise InputError(f"none of the {len(found)} radiographs could be fetched. The first: {problems[0]}.")
    _tell(problems)
    predictor = chosen_model.load(model, options.batch_size)
    outputs = dicom_outputs(predictor, options.dicom or (DEFAULT if options.store else ()))
    report = predict_files(
        predictor,
        options.output / IMAGES,
        sources,
        options.output,
        options.overlays,
        any_image=options.any_image,
        outputs=outputs,
    )
    print(
        f"{report.images} radiographs, pneumothorax outlined in {report.positive}, {report.set_aside} files set "
        f"aside; {options.output / 'submission.csv'}. {report.note}"
    )
    if options.store:
        results = [output.path(options.output, each.uid) for each in found for output in outputs]
        refused = store_all(client, [path for path in results if path.exists()], options.output / STORED)
        print(f"{options.url} has the results but {len(refused)}." if refused else f"{options.url} has all results.")
        _tell(refused)
        problems += refused
    return DONE if report.complete and not problems else PARTIAL


def _tell(problems: Iterable[str]) -> None:
    for problem in problems:
        print(problem)


def _check_service(output: Path, url: str) -> None:
    """Raises InputError where an output folder is another service's: its results name that service's patients."""
    path = output / SERVICE
    if not path.exists():
        return
    known = read_json(path)
    before = known.get("url") if isinstance(known, dict) else None
    if before != url.rstrip("/"):
        raise InputError(
            f"--output {output} has radiographs of {before}, and its results must not come to another service. Give "
            "that --url, or another --output."
        )


def _filters(text: str) -> dict[str, str]:
    """The value of --query. Raises ArgumentTypeError, as the `type` of an option has to."""
    filters = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in FILTERS:
            raise argparse.ArgumentTypeError(
                f"{as_typed(name)} is not one of {', '.join(FILTERS)}.{did_you_mean(name, FILTERS)} Command lines are "
                "recorded, so they must not name patients"
            )
        if not equals or not re.fullmatch(r"[A-Za-z0-9.\- ]+", value):
            raise argparse.ArgumentTypeError(f"{name} needs a value of letters, digits, dots and hyphens")
        filters[name] = value
    return filters


def _uid(text: str) -> str:
    """The value of --study. Raises ArgumentTypeError, as the `type` of an option has to."""
    if not is_uid(text):
        raise argparse.ArgumentTypeError(f"{as_typed(text)} is no UID, such as 1.2.840.1")
    return text


def _credentials(file: Path | None) -> str:
    if file is None:
        return os.environ.get(VARIABLE, "")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"--credentials {file} cannot be read: {error.strerror}.") from error
