"""The mask as DICOM Segmentation, binary, at the radiograph's native size (DICOM PS3.3 A.51)."""

from pydicom.dataset import Dataset

from jaxpneumo.dicom.origin import Origin
from jaxpneumo.dicom.outcome import FINDING, NAME, ORANGE, RESEARCH, Algorithm, ImageOutcome, common, finish, uid

KIND = "seg"
NO_SPACING = "Research use only. Pixel spacing is unknown: 1 mm is one pixel."


def segmentation(origin: Origin, outcome: ImageOutcome, algorithm: Algorithm) -> Dataset:
    """Makes a Segmentation with one segment, for a positive outcome.

    A radiograph has no place in the room, and some do not say their pixels' spacing. Viewers and readers fail where a
    segmentation has no plane, position, thickness or spacing. So it has them, and nothing can be measured with them:
    there is no Frame of Reference, and an unknown spacing is said to be so.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    segment = SegmentDescription(
        segment_number=1,
        segment_label=FINDING,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Pneumothorax,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=NAME, family=codes.DCM.ArtificialIntelligence, version=algorithm.version, source=NAME
        ),
        tracking_id=FINDING,
        tracking_uid=uid(algorithm, origin.uid, origin.owner, "tracking"),
        display_color=CIELabColor.from_rgb(*ORANGE),
    )
    result = Segmentation(
        source_images=[origin.dataset],
        pixel_array=outcome.mask[None],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        content_label="PNEUMOTHORAX",
        content_description=RESEARCH if origin.pixel_spacing else NO_SPACING,
        pixel_measures=PixelMeasuresSequence(origin.pixel_spacing or (1.0, 1.0), slice_thickness=1.0),
        **common(origin, algorithm, KIND),
    )
    organization = uid(algorithm, origin.uid, origin.owner, KIND, "dimensions")
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    shared, frame = result.SharedFunctionalGroupsSequence[0], result.PerFrameFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = PlaneOrientationSequence("PATIENT", (1, 0, 0, 0, 1, 0))
    frame.PlanePositionSequence = PlanePositionSequence("PATIENT", (0, 0, 0))
    result.PatientOrientation = origin.dataset.PatientOrientation
    return finish(result, origin)
