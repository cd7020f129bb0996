"""The outlined picture as a Secondary Capture, the one form that every viewer shows (DICOM PS3.3 A.8)."""

from typing import Any, cast

import numpy as np
from pydicom.dataset import Dataset

from jaxpneumo.dicom.origin import Origin
from jaxpneumo.dicom.outcome import Algorithm, common, finish, name_part, remarks

KIND = "capture"


def capture(origin: Origin, picture: np.ndarray, algorithm: Algorithm) -> Dataset:
    """Makes a Secondary Capture of a picture. It is not compressed, so that every archive takes it.

    Args:
      origin: of the radiograph.
      picture: uint8 (H, W, 3) RGB, the radiograph with outlines drawn on it.
      algorithm: what found them.
    """
    from highdicom.sc import SCImage
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    result = SCImage.from_ref_dataset(
        origin.dataset,
        picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # asked for; the radiograph's takes its place
        pixel_spacing=cast(Any, origin.pixel_spacing),  # it takes fractions too
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **common(origin, algorithm, KIND),
    )
    result.PatientOrientation = origin.dataset.PatientOrientation
    result.DerivationDescription = " ".join(["Outlines drawn on a radiograph.", *remarks(origin, algorithm)])
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = origin.dataset.SOPClassUID, origin.uid
    source.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    result.SourceImageSequence = [source]
    name_part(result, origin)
    return finish(result, origin)
