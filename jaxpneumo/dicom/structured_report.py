"""The outcome as a Comprehensive 3D SR document by TID 1500, as IHE's profile AI Results asks (DICOM PS3.16).

A positive report has the finding, its certainty, its area and its side. A negative one says that a pneumothorax is
absent and nothing else: whoever looks for a finding or for a number finds none.

Its title is one that viewers show as text. OHIF expects coordinates in an "Imaging Measurement Report", the usual
title of TID 1500, and shows an empty viewport where there are none.
"""

from typing import Any

from pydicom.dataset import Dataset

from jaxpneumo.dicom.elements import Elements
from jaxpneumo.dicom.origin import Origin
from jaxpneumo.dicom.outcome import FINDING, NAME, Algorithm, ImageOutcome, common, finish, remarks, uid

KIND = "sr"
TITLE = ("112000", "DCM", "Chest CAD Report")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}


def report(origin: Origin, outcome: ImageOutcome, algorithm: Algorithm, segmentation: Dataset | None = None) -> Dataset:
    """Makes the report of any outcome.

    Args:
      origin: of the radiograph.
      outcome: what was found.
      algorithm: what found it.
      segmentation: the outcome's, if it is stored too: the report then refers to it.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=uid(algorithm, "device"),
        name=NAME,
        manufacturer_name=NAME,
        model_name=NAME,
        serial_number=algorithm.model,
    )
    content = sr.MeasurementReport(
        title=sr.CodedConcept(*TITLE),
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[_group(origin, outcome, algorithm, segmentation)],
        referenced_images=[origin.dataset],
    )
    _describe_image(content[0], origin)
    _separate(content[0])
    variant = () if segmentation is None else ("with segmentation",)
    result = sr.Comprehensive3DSR(
        evidence=[origin.dataset] if segmentation is None else [origin.dataset, segmentation],
        content=content,
        is_complete=True,
        performed_procedure_codes=[codes.SCT.ImagingProcedure],
        **common(origin, algorithm, KIND, *variant),
    )
    return finish(result, origin)


def _group(origin: Origin, outcome: ImageOutcome, algorithm: Algorithm, segmentation: Dataset | None) -> Any:
    """The measurement group: TID 1410 with a segmentation, else TID 1501."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    present = outcome.area > 0
    known: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid(algorithm, origin.uid, origin.owner, "tracking"), FINDING if present else "Search for pneumothorax"
        ),
        "algorithm_id": sr.AlgorithmIdentification(
            name=NAME,
            version=algorithm.version,
            parameters=[f"model {algorithm.model}", f"settings {algorithm.settings}", *remarks(origin, algorithm)],
        ),
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(codes.SCT.Pneumothorax, codes.SCT.Present if present else codes.SCT.Absent)
        ],
    }
    if present:
        known |= {"finding_type": codes.SCT.Pneumothorax, "measurements": _measurements(origin, outcome)}
        if outcome.side:
            code, meaning = SIDES[outcome.side]
            known["finding_sites"] = [sr.FindingSite(codes.SCT.Lung, laterality=Code(code, "SCT", meaning))]
    image = (str(origin.dataset.SOPClassUID), origin.uid)
    if segmentation is None:
        return sr.MeasurementsAndQualitativeEvaluations(
            source_images=[sr.SourceImageForMeasurementGroup(*image)], **known
        )
    frame = sr.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=1,
        segment_number=1,
        source_image=sr.SourceImageForSegmentation(*image),
    )
    # A reference names a segment or a frame, not both.
    del frame[0].ReferencedSOPSequence[0].ReferencedFrameNumber
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=frame, **known)


def _measurements(origin: Origin, outcome: ImageOutcome) -> list[Any]:
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    found = []
    if origin.pixel_spacing:
        area = outcome.area * origin.pixel_spacing[0] * origin.pixel_spacing[1]
        found.append(Measurement(codes.SCT.Area, round(area, 2), codes.UCUM.SquareMillimeter))
    pixels = Code("{pixels}", "UCUM", "pixels")
    found.append(Measurement(codes.SCT.Area, outcome.area, pixels))
    if outcome.score is not None:
        found.append(Measurement(codes.DCM.CertaintyOfFinding, round(100 * outcome.score, 2), codes.UCUM.Percent))
    return found


def _describe_image(root: Dataset, origin: Origin) -> None:
    """Replaces the image library's entry of a Secondary Capture: the radiograph's modality, and no numbers.

    A modality that the standard has no code for (CID 29), such as OT, is reported as CR.
    """
    from highdicom import sr
    from highdicom.sr.utils import find_content_items
    from pydicom.sr.codedict import codes

    value = Elements(origin.header).text("Modality")
    known = {code.value: code for code in (getattr(codes.cid29, name) for name in codes.cid29.dir())}
    modality = known.get(value, codes.cid29.ComputedRadiography)
    (entry,) = find_content_items(root, codes.SCT.Source, recursive=True)
    entry.ContentSequence = sr.ContentSequence(
        [sr.CodeContentItem(codes.DCM.Modality, modality, sr.RelationshipTypeValues.HAS_ACQ_CONTEXT)]
    )


def _separate(item: Dataset) -> None:
    """Says of all containers that their content is a list, not flowing text, so that viewers show names and values."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for each in item.get("ContentSequence", ()):
        _separate(each)
