"""Header to grey: tables, windows and padding as DICOM PS3.3 C.11.1, C.11.2 and C.7.5.1.1.2 have them.

Expected pictures are computed here from the values that were drawn.
"""

import numpy as np
import pydicom
import pytest
from display_images import BORDER, BYTES, SHARE, WORDS, close, image, read, stretched, table
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.radiograph import ONE_GREY, RadiographError

# Tables


@pytest.mark.parametrize("descriptor", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("bits", [8, 10, 12, 15])
def test_a_voi_lut_fills_the_bits_that_its_entries_need(descriptor, bits):
    entries = np.rint((np.arange(4096) / 4095) ** 2 * (2**bits - 1)).astype(int)
    made = image(WORDS, 12, VOILUTSequence=[table(entries, 0, descriptor)])
    assert close(read(made).image, entries[WORDS] / (2**bits - 1) * 255)


@pytest.mark.parametrize("count", [255, 256, 4095, 4096])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_entries_are_bytes_where_lut_data_have_one_each(kind, count):
    entries = np.arange(count) * 255 // (count - 1)
    values = np.rint(SHARE * (count - 1)).astype("<u2")
    shown = read(image(values, 12, **{kind: [table(entries, 0, 8, one_byte=True)]})).image
    assert close(shown, entries[values])


@pytest.mark.parametrize("implicit", [False, True])
def test_the_first_value_of_a_table_has_the_sign_of_the_rescaled_values(implicit):
    entries = np.rint(np.sqrt(np.arange(4096) / 4095) * 4095).astype(int)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": [table(entries, -1024, 12, "SS")]}
    assert close(read(image(WORDS, 12, **elements), implicit).image, entries[WORDS] / 4095 * 255)


def test_a_first_value_above_32767_stays_one_where_no_value_is_negative():
    values = (WORDS.astype(int) + 40_000).astype("<u2")
    entries = np.arange(4096)
    shown = read(image(values, VOILUTSequence=[table(entries, 40_000, 12)]), implicit=True).image
    assert close(shown, WORDS / 4095 * 255)


def test_a_table_of_65536_entries_has_the_descriptor_0():
    values = np.rint(SHARE * 65535).astype("<u2")
    entries = 65535 - np.arange(65536)
    assert close(read(image(values, VOILUTSequence=[table(entries, 0, 16)])).image, 255 - values / 65535 * 255)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_modality_lut_is_stretched(bits):
    entries = np.rint((np.arange(4096) / 4095) ** 0.5 * (2**bits - 1)).astype(int)
    made = image(WORDS, 12, ModalityLUTSequence=[table(entries, 0, bits, one_byte=bits == 8)])
    assert close(read(made).image, stretched(entries[WORDS]))


@pytest.mark.parametrize("kind", ["VOI LUT", "Modality LUT"])
def test_a_table_that_ends_too_early_is_refused_by_name(kind):
    item = table(np.arange(4096), 0, 12)
    item.LUTData = item.LUTData[:6000]
    with pytest.raises(RadiographError, match=f"{kind} whose LUT Descriptor says 4096 entries, but .* 6000 bytes"):
        read(image(WORDS, 12, **{kind.replace(" ", "") + "Sequence": [item]}))


# Windows


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [0.5, 0.01])
def test_windows_narrower_than_1(function, width):
    values = np.rint(SHARE * 65535).astype("<u2")
    slope = 1 / 65536
    made = image(values, RescaleSlope=f"{slope:.10f}", RescaleIntercept=0, WindowCenter="0.4", WindowWidth=str(width))
    made.VOILUTFunction = function
    distance = (values * float(f"{slope:.10f}") - 0.4) / width
    right = (distance + 0.5) * 255 if function == "LINEAR_EXACT" else 255 / (1 + np.exp(-4 * distance))
    assert close(read(made).image, np.clip(right, 0, 255))


@pytest.mark.parametrize(
    ("elements", "word"),
    [
        ({"WindowCenter": 50_000, "WindowWidth": 1000}, "window"),
        ({"WindowCenter": -9000, "WindowWidth": 100}, "window"),
        ({"WindowCenter": 2000, "WindowWidth": 0}, "Window Width"),
        ({"WindowCenter": 2000, "WindowWidth": 0.5}, "Window Width"),
        ({"WindowCenter": 2000, "WindowWidth": -300, "VOILUTFunction": "SIGMOID"}, "Window Width"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "Rescale Slope"),
        ({"RescaleSlope": 1, "RescaleIntercept": "1e20"}, "Rescale Intercept"),
        ({"RescaleSlope": 0, "RescaleIntercept": 7, "WindowCenter": -900, "WindowWidth": 3}, "Rescale Slope"),
        ({"VOILUTSequence": [table(np.full(4096, 70), 0, 8)]}, "VOI LUT"),
        ({"ModalityLUTSequence": [table(np.full(4096, 70), 0, 8)]}, "Modality LUT"),
        ({"VOILUTSequence": [Dataset()]}, "VOI LUT"),
    ],
)
def test_what_would_leave_a_single_grey_is_ignored_and_said(elements, word):
    radiograph = read(image(WORDS, 12, **elements))
    assert close(radiograph.image, stretched(WORDS))
    assert any(word in remark for remark in radiograph.remarks)


def test_a_window_serves_where_the_look_up_table_does_not():
    made = image(BYTES, WindowCenter=128, WindowWidth=256, VOILUTSequence=[Dataset()])
    radiograph = read(made)
    assert np.array_equal(radiograph.image, BYTES)
    assert len(radiograph.remarks) == 1


@pytest.mark.parametrize("value", [0, 9, 255])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_one_grey_is_no_radiograph(value, photometric):
    for kind in ("u1", "<u2"):
        with pytest.raises(RadiographError, match="a single grey") as caught:
            read(image(np.full((32, 32), value, kind), photometric=photometric))
        assert caught.value.reason == ONE_GREY


def test_nothing_but_padding_is_no_radiograph():
    with pytest.raises(RadiographError, match="a single grey"):
        read(image(np.where(BORDER, 0, 4000).astype("<u2"), 12, PixelPaddingValue=0))


# Padding

TRANSFORMATIONS = {
    "stretch": ({}, stretched(WORDS, ~BORDER)),
    "window": ({"WindowCenter": 2050, "WindowWidth": 3001}, np.clip(((WORDS - 2049.5) / 3000 + 0.5) * 255, 0, 255)),
    "table": ({"VOILUTSequence": [table(np.arange(4096), 0, 12)]}, WORDS / 4095 * 255),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("limited", [False, True])
def test_padding_is_black_whatever_the_transformation(transformation, photometric, limited):
    elements, right = TRANSFORMATIONS[transformation]
    low, high = (5, 60) if limited else (4095, 4095)
    outside = np.where(np.indices(WORDS.shape)[1] % 2, low, high)
    limit = {"PixelPaddingRangeLimit": low} if limited else {}
    values = np.where(BORDER, outside, WORDS).astype("<u2")
    shown = read(image(values, 12, photometric, PixelPaddingValue=high, **limit, **elements)).image
    assert not shown[BORDER].any()
    assert close(shown[~BORDER], (255 - right if photometric == "MONOCHROME1" else right)[~BORDER])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_8_bits(photometric):
    values = np.where(BORDER, 255, BYTES).astype("u1")
    shown = read(image(values, photometric=photometric, PixelPaddingValue=255)).image
    inside = 255 - BYTES if photometric == "MONOCHROME1" else BYTES
    assert np.array_equal(shown, np.where(BORDER, 0, inside))


@pytest.mark.parametrize(
    ("kind", "bits", "stored", "vr", "element"),
    [
        ("<i2", 16, -2000, "US", 63536),
        ("<i2", 12, -2000, "US", 63536),
        ("<u2", 16, 65535, "SS", -1),
        ("<u2", 12, 4095, "US", 4095),
        ("<u2", 12, 63536, "US", 63536),  # more than 12 bits hold
    ],
)
def test_padding_is_compared_as_bits(kind, bits, stored, vr, element):
    inside = np.rint(SHARE * 1900 + 20).astype(kind)
    made = image(np.where(BORDER, stored, inside).astype(kind), bits)
    made.add_new("PixelPaddingValue", vr, element)
    shown = read(made).image
    assert not shown[BORDER].any()
    assert close(shown[~BORDER], stretched(inside, ~BORDER)[~BORDER])


def test_a_padding_value_that_no_pixel_can_have_is_none():
    made = image(BYTES)
    made.add_new("PixelPaddingValue", "US", 63536)
    assert np.array_equal(read(made).image, BYTES)


# Elements that are not needed


@pytest.mark.parametrize(
    ("keyword", "vr", "text"),
    [
        ("PixelSpacing", "DS", b"0,139\\0,143"),
        ("PixelSpacing", "DS", b"0.139,0.143 "),
        ("PixelSpacing", "DS", b"Anonymized"),
        ("PixelSpacing", "DS", b"0.139 "),
        ("PixelSpacing", "DS", b"0\\0 "),
        ("ImagerPixelSpacing", "DS", b"0.2 "),
        ("NumberOfFrames", "IS", b"  "),
        ("NumberOfFrames", "IS", b"one "),
        ("RescaleIntercept", "DS", b"0,0 "),
        ("WindowCenter", "DS", b"high"),
        ("PixelPaddingValue", "US", b"\0"),
        ("PatientAge", "AS", b"\xff\xfe"),
        ("VOILUTFunction", "CS", b"\xff\xfe"),
    ],
)
def test_an_element_that_makes_no_sense_leaves_the_picture_as_it_is(keyword, vr, text):
    made = image(BYTES)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.add_new(keyword, vr, None)
    made[keyword].value = None
    buffer = pydicom.filebase.DicomBytesIO()
    made.save_as(buffer, enforce_file_format=True)
    tag = pydicom.tag.Tag(keyword)
    empty = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + vr.encode() + b"\0\0"
    data = buffer.getvalue()
    assert data.count(empty) == 1
    filled = empty[:6] + len(text).to_bytes(2, "little") + text
    radiograph = dicom.parse(data.replace(empty, filled), "a.dcm")
    assert np.array_equal(radiograph.image, BYTES)
    assert radiograph.pixel_spacing is None
    assert radiograph.age is None


def test_a_remark_quotes_the_value():
    made = image(BYTES, PixelSpacing=[0.139, 0.139])
    buffer = pydicom.filebase.DicomBytesIO()
    made.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue().replace(b"0.139\\0.139", b"0,139\\0,139")
    assert dicom.parse(data, "a.dcm").remarks == (
        r"Pixel Spacing is '0,139\0,139', which is not a number; it is ignored",
    )


@pytest.mark.parametrize("one", [{"RescaleSlope": 2}, {"RescaleIntercept": -50}])
def test_one_half_of_the_rescaling_is_enough(one):
    slope, intercept = one.get("RescaleSlope", 1), one.get("RescaleIntercept", 0)
    shown = read(image(BYTES, WindowCenter=100, WindowWidth=151, **one)).image
    assert close(shown, np.clip(((BYTES.astype(int) * slope + intercept - 99.5) / 150 + 0.5) * 255, 0, 255))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_few_pixels_that_take_the_grey_levels_of_the_others_are_said(photometric):
    """A hot pixel, a marker at full scale: without a window the radiograph is stretched between the extremes."""
    words = np.tile(WORDS // 8, (8, 8))
    assert read(image(words, 12, PhotometricInterpretation=photometric)).remarks == ()
    words[3, 5] = 4095
    (remark,) = read(image(words, 12, PhotometricInterpretation=photometric)).remarks
    assert remark.startswith("few pixels, as of a marker, take more than half of the grey levels")
    window = {"WindowCenter": 256, "WindowWidth": 512}
    assert read(image(words, 12, PhotometricInterpretation=photometric, **window)).remarks == ()


def test_a_window_means_nothing_without_its_rescaling():
    made = image(WORDS, 12, RescaleSlope="1.5", RescaleIntercept=0, WindowCenter=9, WindowWidth=80)
    buffer = pydicom.filebase.DicomBytesIO()
    made.save_as(buffer, enforce_file_format=True)
    radiograph = dicom.parse(buffer.getvalue().replace(b"1.5 ", b"1,5 "), "a.dcm")
    assert close(radiograph.image, stretched(WORDS))
    assert len(radiograph.remarks) == 2
