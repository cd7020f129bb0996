"""Which objects the listener and DICOMweb take: radiographs, in the encodings that are read; and why one is refused."""

import re

_STORAGE, _SYNTAX = "1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.1.2"
# Computed Radiography, Digital X-Ray for presentation and for processing, Secondary Capture and its grey multi-frames.
# Those for processing get no results, as lateral views do not: they are set aside with the reason, and no device shows
# an error.
RADIOGRAPHS = tuple(_STORAGE + end for end in ("1", "1.1", "1.1.1", "7", "7.2", "7.3"))
# What `dicom.stored` reads: uncompressed, JPEG, JPEG Lossless, JPEG-LS, JPEG 2000, RLE. A deflated object could unfold
# to any size.
_ENDS = (".1", "", ".2", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5")
SYNTAXES = tuple(_SYNTAX + end for end in _ENDS)
# Answers to C-STORE (DICOM PS3.4 B.2.3)
SUCCESS, OUT_OF_RESOURCES, NOT_MATCHING, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Whether a text can be a UID (DICOM PS3.5 9.1), and so a folder's name; leading zeros are let pass."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def judge(uid: str, sop_class: str, negotiated: str, data: bytes) -> tuple[int, str]:
    """Whether an object can be accepted. Its pixels are not looked at: the process of the model does that.

    Args:
      uid, sop_class: by the request.
      negotiated: the SOP class of its presentation context.
      data: the DICOM file.

    Returns:
      The status to answer, and why it cannot be accepted ("" with SUCCESS).
    """
    from jaxpneumo.dicom.dicom import read_uid  # here: --help does without pydicom

    if not is_uid(uid):
        return NOT_UNDERSTOOD, "its SOP Instance UID is not valid"
    if sop_class != negotiated:
        return NOT_MATCHING, "its SOP Class UID is not the one agreed on"
    own = read_uid(data)
    if not own:
        return NOT_UNDERSTOOD, "its data set cannot be read, or has no SOP Instance UID"
    return (SUCCESS, "") if own == uid else (NOT_MATCHING, "its data set has another SOP Instance UID")
