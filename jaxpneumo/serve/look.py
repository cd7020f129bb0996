"""What the process of the model does with one radiograph: it predicts it as `jaxpneumo predict` does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxpneumo.process.runtime import prepare_jax
from jaxpneumo.serve.chosen_model import ModelOptions, load
from jaxpneumo.serve.model_process import Look, Verdict


def make_look(options: ModelOptions, kinds: Sequence[str], stored: Sequence[str]) -> Look:
    """Loads a model. Each image is a batch of its own, so that its result depends on no other image.

    Args:
      options: which model.
      kinds: of results to write.
      stored: those of them that are wherever a report is, so that it may refer to them.

    Returns:
      The function of an image's file and of the folder to write KIND.dcm to.

    Raises:
      InputError: as `chosen_model.load`.
    """
    prepare_jax()
    from jaxpneumo.predict.certainty import bands_of
    from jaxpneumo.predict.dicom_results import algorithm_of, write_dicom_results
    from jaxpneumo.predict.finding import predict_findings
    from jaxpneumo.predict.reading import Picture, Reading, read

    predictor = load(options, batch_size=1)
    bands, algorithm, size = bands_of(predictor), algorithm_of(predictor), predictor.settings.size
    # Compiles now and not with the first image; masks of other native sizes take another second each.
    blank = Picture("blank", uid="blank", image=np.zeros((size, size), np.uint8), height=size, width=size)
    for _, describe in predict_findings(predictor, [blank], bands):
        describe()

    def look(image: Path, into: Path) -> Verdict:
        picture = read(Reading(image.parent, size, any_image=options.any_image), image.name)
        if picture.reason:
            return Verdict(picture.reason)
        ((_, describe),) = predict_findings(predictor, [picture], bands)
        finding = describe()
        written, reasons = write_dicom_results(image, finding, kinds, into, algorithm, stored)
        if reasons and not written:
            return Verdict(next(iter(reasons.values())))
        facts = {"model": predictor.model_id, "outlined": finding.area > 0, "area": finding.area}
        return Verdict(facts=facts | ({"lacks": reasons} if reasons else {}))

    return look
