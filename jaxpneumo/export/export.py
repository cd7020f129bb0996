"""`jaxpneumo export`: a run's network for other programs, or a folder to share."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.postprocess import RULES as REMOVAL_RULES
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.run import tta
from jaxpneumo.run.tta import TTA

# Modules that need JAX are imported where they are used, so that --help is fast.
if TYPE_CHECKING:
    from jaxpneumo.export.self_check import Comparison, Predicted, Read
    from jaxpneumo.predict.infer import Predictor

FORMATS = ("onnx", "stablehlo", "torch", "folder")

HELP = """\
Writes the network of a finished run in a form that other programs read. Not a medical device.

  onnx       the whole prediction as one file: radiographs of any size in; mask, probability and score out. For ONNX
             Runtime, OpenVINO and others; `jaxpneumo predict --model FILE` predicts an archive with it. In float32, and
             compared with the run's network in float32
  stablehlo  the same as a function of JAX, for any program that has JAX (cpu, cuda, tpu); FILE.json is beside it
  torch      a .safetensors file that loads strictly into segmentation_models_pytorch's Unet
  folder     a folder to share: weights, config, model card and checksums. `jaxpneumo.load`, every --workdir and
             `jaxpneumo import` take it

Before the file gets its name, it predicts pictures, and its masks and probabilities are compared with the run's. An
export that is further off than rounding explains is removed (exit code 1). The pictures are some of the run's data
set; --check takes radiographs of yours at their own size.

examples:
  jaxpneumo export --workdir runs/exp5 --format onnx --output exp5.onnx --check dicom-images-test
  jaxpneumo export --workdir runs/exp5 --format folder --output exp5 --thresholds triplet
"""


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
      predictor: of the run, with the settings to export; batches of one image.
      description: the result of `description.describe`.
      summary: the run's evaluation; None without one.
    """

    predictor: "Predictor"
    description: dict[str, Any]
    summary: dict[str, Any] | None


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo export", description=HELP)
    add = parser.add_argument
    add("--workdir", type=places.path, required=True, help="folder of a finished run, or a shared folder")
    add("--format", choices=FORMATS, required=True, help="what to write")
    add("--output", type=places.path, required=True, help="file to write; for --format folder a folder to make")
    add("--thresholds", metavar="NAME", help="use the thresholds that `jaxpneumo thresholds` saved under this name")
    add("--tta", type=TTA, metavar="NAMES", help=f"test-time augmentation: {TTA} (default: the run's)")
    add("--removal-rule", choices=REMOVAL_RULES, help="remove whole images or single components (default: the run's)")
    add("--check", type=places.path, metavar="INPUT", help="radiographs for the comparison: a folder or a file")
    options = parser.parse_args(arguments)

    (places.check_folder if options.format == "folder" else places.check_file)(options.output, "--output")
    # Beside the output: a folder to share holds nothing of this machine.
    run_report.place(options.output.with_name(f"{options.output.name}.json"))
    if "jax" not in sys.modules:
        # Every machine writes the same file, and none of them needs a GPU for it.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    subject = _subject(options.workdir, options.thresholds, options.tta, options.removal_rule, options.format)

    from jaxpneumo.export.self_check import found_by, pictures

    read, origin = pictures(Path(subject.predictor.config.data.directory), options.check)
    own = found_by(subject.predictor, read())
    write = {"onnx": _write_onnx, "stablehlo": _write_stablehlo, "torch": _write_torch, "folder": _write_folder}
    found = write[options.format](subject, options.output, read, own)
    print(f"Compared on {origin}: {found}.")
    print(f"{options.output}: {subject.description['encoder']}, {saved_thresholds.words(subject.description)}.")
    print(subject.description["note"])
    return DONE


def _subject(workdir: Path, thresholds: str | None, views: Any, rule: str | None, form: str) -> Subject:
    """Loads what is exported, and refuses what the format cannot hold."""
    from jaxpneumo.export.description import describe, read_summary
    from jaxpneumo.predict.infer import load_predictor

    predictor = load_predictor(workdir, batch_size=1)
    settings = predictor.settings
    settings = replace(settings, tta=settings.tta if views is None else views)
    if thresholds:
        settings = saved_thresholds.use(workdir, thresholds, settings)
    settings = replace(settings, removal_rule=rule or settings.removal_rule)
    predictor = replace(predictor, settings=settings)
    _refuse(predictor, form)
    if form == "onnx" and predictor.config.model.dtype != "float32":
        predictor = _in_float32(predictor)
    summary = read_summary(workdir, predictor.model_id)
    return Subject(predictor, describe(predictor, summary), summary)


def _refuse(predictor: "Predictor", form: str) -> None:
    """Raises InputError for what a format has no words for, with the way out."""
    settings = predictor.settings
    if form == "torch":
        from jaxpneumo.export.torch_weights import arguments

        arguments(predictor.config.model)
    if form == "onnx" and not set(tta.names(settings.tta)) <= {"flip"}:
        raise InputError(
            f"the ONNX model knows the flip and no other views, and this run predicts {tta.words(settings.tta)}. "
            "--tta True exports it with the flip alone: choose thresholds for that. Or take --format stablehlo."
        )
    if form in ("onnx", "stablehlo") and settings.removal_rule == "component" and settings.removal_threshold:
        raise InputError(
            f"--format {form} cannot tell regions apart, and this run removes small ones one by one. --removal-rule "
            "image exports it with the other rule: choose thresholds for that with `jaxpneumo thresholds --rule image`."
        )


def _in_float32(predictor: "Predictor") -> "Predictor":
    """The same network, computed in float32."""
    config = replace(predictor.config, model=replace(predictor.config.model, dtype="float32"))
    return _with_variables(replace(predictor, config=config), _variables(predictor))


def _with_variables(predictor: "Predictor", variables: dict[str, Any]) -> "Predictor":
    """The predictor of a run's network with these variables, as training leaves them."""
    from jaxpneumo.predict.infer import compile_network
    from jaxpneumo.run.network import make_model

    model = make_model(predictor.config.model, training=False)
    return replace(predictor, **vars(compile_network(model, variables, predictor.settings, predictor.mesh)))


def _variables(predictor: "Predictor") -> dict[str, Any]:
    """{"params", "batch_stats"} as training left them."""
    from jaxpneumo.run.network import make_model
    from jaxpneumo.run.sharding import replicated
    from jaxpneumo.run.shared import final_variables
    from jaxpneumo.run.state import variable_shapes

    template = variable_shapes(make_model(predictor.config.model))
    return final_variables(predictor.workdir, predictor.stage, template, replicated(predictor.mesh))


# One function a format: (subject, output, what reads pictures, what the run finds in them) -> the comparison


def _write_onnx(subject: Subject, output: Path, read: "Read", own: Iterable["Predicted"]) -> "Comparison":
    from jaxpneumo.export.description import texts
    from jaxpneumo.export.onnx_model import OUTPUTS, to_onnx
    from jaxpneumo.export.self_check import ROUNDED, Predicted, compare
    from jaxpneumo.predict.onnx_session import open_session, threshold_inputs

    network, settings = subject.predictor.config.model, subject.predictor.settings
    thresholds = threshold_inputs(settings, network.classifier)
    with write_atomically(output, "wb") as file:
        file.write(to_onnx(network, subject.predictor.variables, settings, texts(subject.description)))
        file.flush()
        session = open_session(Path(file.name))
        found = (session.run({"image": image[None], **thresholds}, list(OUTPUTS)) for image in read())
        return compare(own, (Predicted(*(each[0] for each in of_one)) for of_one in found), settings.threshold, ROUNDED)


def _write_stablehlo(subject: Subject, output: Path, read: "Read", own: Iterable["Predicted"]) -> "Comparison":
    from jaxpneumo.export.self_check import ROUNDED, ROUNDED_BFLOAT16, Predicted, compare
    from jaxpneumo.export.stablehlo import beside, from_stablehlo, to_stablehlo

    description = output.with_name(f"{output.name}.json")
    # The file gets its name before its description does, and none of an older file is left by then: whatever ends the
    # program between them, no description lies beside a network that it is not of.
    with write_atomically(description) as text:
        text.write(beside(subject.description))
        with write_atomically(output, "wb") as file:
            file.write(to_stablehlo(subject.predictor))
            file.flush()
            settings = subject.predictor.settings
            network = from_stablehlo(Path(file.name).read_bytes(), settings)
            theirs = (Predicted(*(each[0] for each in network(image[None]))) for image in read())
            bound = ROUNDED if subject.predictor.config.model.dtype == "float32" else ROUNDED_BFLOAT16
            found = compare(own, theirs, settings.threshold, bound)
            description.unlink(missing_ok=True)
    return found


def _write_torch(subject: Subject, output: Path, read: "Read", own: Iterable["Predicted"]) -> "Comparison":
    from jaxpneumo.export.self_check import EQUAL, compare, found_by
    from jaxpneumo.export.torch_weights import header, to_torch
    from jaxpneumo.model.pretrained import from_torch
    from jaxpneumo.model.weight_files import from_safetensors, to_safetensors

    variables, config = _variables(subject.predictor), subject.predictor.config
    with write_atomically(output, "wb") as file:
        file.write(to_safetensors(to_torch(variables), header(config.model, subject.description)))
        file.flush()
        back = from_torch(from_safetensors(Path(file.name).read_bytes()), variables)
        theirs = found_by(_with_variables(subject.predictor, back), read())
        return compare(own, theirs, subject.predictor.settings.threshold, EQUAL)


def _write_folder(subject: Subject, output: Path, read: "Read", own: Iterable["Predicted"]) -> "Comparison":
    from jaxpneumo.export.self_check import EQUAL, compare, found_by
    from jaxpneumo.export.shared_folder import new_folder, write_shared
    from jaxpneumo.predict.infer import load_predictor

    variables = _variables(subject.predictor)
    with new_folder(output) as folder:
        write_shared(folder, subject.predictor, variables, subject.description, subject.summary)
        theirs = found_by(load_predictor(folder, batch_size=1), read())
        return compare(own, theirs, subject.predictor.settings.threshold, EQUAL)
