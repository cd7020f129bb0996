"""The bits that are pixels: high bits, overlays, codestreams that contradict the header, grey stored as colour."""

import imagecodecs
import numpy as np
import pydicom
import pytest
from display_images import BYTES, SHARE, WORDS, close, image, stretched
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.radiograph import COLOUR, SEVERAL_FRAMES, RadiographError

ENCODERS = {
    JPEG2000Lossless: lambda words, bits: imagecodecs.jpeg2k_encode(
        words, level=0, codecformat="j2k", bitspersample=bits
    ),
    JPEGLSLossless: lambda words, bits: imagecodecs.jpegls_encode(words),
    JPEGLosslessSV1: lambda words, bits: imagecodecs.jpeg8_encode(words, lossless=True, bitspersample=bits),
}


def saved(
    made: Dataset, syntax: str = ExplicitVRLittleEndian, *frames: bytes | None, fragments: int = 1, table: bool = True
) -> bytes:
    made.file_meta.TransferSyntaxUID = syntax
    if frames and frames[0] is not None:
        made.PixelData = encapsulate(list(frames), fragments_per_frame=fragments, has_bot=table)
        made["PixelData"].VR = "OB"
        made["PixelData"].is_undefined_length = True
    buffer = pydicom.filebase.DicomBytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(*arguments) -> dicom.Radiograph:
    return dicom.parse(saved(*arguments), "a.dcm")


def rle(pixels: np.ndarray, photometric: str = "MONOCHROME2") -> bytes:
    return get_encoder(RLELossless).encode(
        pixels,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1 if pixels.ndim == 2 else 3,
        bits_allocated=8 * pixels.itemsize,
        bits_stored=8 * pixels.itemsize,
        pixel_representation=0,
        photometric_interpretation=photometric,
        number_of_frames=1,
        planar_configuration=0,
    )


# Bits above and below


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, *ENCODERS])
def test_an_overlay_in_the_bits_above_is_no_pixel(syntax):
    overlay = (np.indices(WORDS.shape)[0] % 7 == 0) * 0xF000
    words = (WORDS | overlay).astype("<u2")
    frame = rle(words) if syntax == RLELossless else ENCODERS[syntax](words, 16) if syntax in ENCODERS else None
    assert close(read(image(words, 12), syntax, frame).image, stretched(WORDS))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, *ENCODERS])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 13), (10, 15), (8, 15)])
def test_pixels_end_at_high_bit(syntax, bits, high):
    shift = high + 1 - bits
    values = np.rint(SHARE * (2**bits - 1)).astype(int)
    rubbish = np.random.default_rng(0).integers(0, 2**shift, SHARE.shape)
    words = (values << shift | rubbish).astype("<u2")
    frame = rle(words) if syntax == RLELossless else ENCODERS[syntax](words, 16) if syntax in ENCODERS else None
    assert close(read(image(words, bits, HighBit=high), syntax, frame).image, stretched(values))


@pytest.mark.parametrize("spread", [False, True])
def test_signed_values_of_12_bits(spread):
    values = np.rint(SHARE * 3000 - 1500).astype("<i2")
    words = values if spread else (values & 0xFFF).astype("<i2")
    assert close(read(image(words, 12)).image, stretched(values))


def test_an_impossible_pixel_representation_is_ignored_and_said():
    radiograph = read(image(WORDS, 12, PixelRepresentation=2))
    assert close(radiograph.image, stretched(WORDS))
    assert radiograph.remarks == ("Pixel Representation is 2; the values are read as unsigned",)


def test_an_impossible_high_bit_is_ignored_and_said():
    radiograph = read(image(WORDS, 12, HighBit=7))
    assert close(radiograph.image, stretched(WORDS))
    assert radiograph.remarks == ("High Bit is 7, which 12 Bits Stored of 16 cannot have; it is ignored",)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
@pytest.mark.parametrize("only_down", [False, True])
def test_values_that_go_on_above_bits_stored_are_refused(syntax, only_down):
    """Without their upper bits they would wrap around: another picture."""
    words = np.repeat(WORDS[:, :1], WORDS.shape[1], 1) if only_down else WORDS
    frame = None if syntax == ExplicitVRLittleEndian else imagecodecs.jpegls_encode(words)
    with pytest.raises(RadiographError, match="says 10 Bits Stored, but its values have more bits"):
        read(image(words, 10), syntax, frame)


# Codestreams that contradict the header


@pytest.mark.parametrize(
    ("values", "bits", "frame", "syntax"),
    [
        (BYTES, 8, ENCODERS[JPEG2000Lossless](WORDS, 12), JPEG2000Lossless),
        (BYTES, 8, ENCODERS[JPEGLSLossless](WORDS, 16), JPEGLSLossless),
        (WORDS, 10, ENCODERS[JPEG2000Lossless](WORDS, 12), JPEG2000Lossless),
        (WORDS, 14, ENCODERS[JPEG2000Lossless](WORDS, 12), JPEG2000Lossless),
        (WORDS, 10, ENCODERS[JPEGLosslessSV1](WORDS, 12), JPEGLosslessSV1),
    ],
)
def test_the_codestream_knows_its_bits(values, bits, frame, syntax):
    radiograph = read(image(values, bits), syntax, frame)
    assert close(radiograph.image, stretched(WORDS))
    assert any("Bits Stored is" in remark for remark in radiograph.remarks)


def test_a_jpeg_of_8_bits_under_a_header_of_12(tmp_path):
    radiograph = read(image(WORDS, 12), JPEGBaseline8Bit, imagecodecs.jpeg8_encode(BYTES, level=100))
    assert np.abs(radiograph.image - stretched(BYTES)).max() <= 2.5
    assert radiograph.remarks == ("Bits Stored is 12, the compressed pixels have 8 bits: these are used",)


def test_the_codestream_counts_where_the_transfer_syntax_names_another():
    assert close(read(image(WORDS, 12), JPEGLosslessSV1, ENCODERS[JPEG2000Lossless](WORDS, 12)).image, stretched(WORDS))


def test_high_throughput_jpeg_2000():
    frame = imagecodecs.htj2k_encode(WORDS)
    assert close(read(image(WORDS, 12), HTJ2KLossless, frame).image, stretched(WORDS))


def test_compressed_pixels_of_a_stated_length():
    """Not what the standard wants, but whole."""
    made = image(WORDS, 12)
    saved(made, JPEG2000Lossless, ENCODERS[JPEG2000Lossless](WORDS, 12))
    made["PixelData"].is_undefined_length = False
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, made, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert close(dicom.parse(buffer.getvalue(), "a.dcm").image, stretched(WORDS))


def test_an_unknown_compression_is_named():
    with pytest.raises(RadiographError, match=r"cannot be read .transfer syntax .MPEG2"):
        read(image(BYTES), "1.2.840.10008.1.2.4.100", b"\0\0\1\xb3" + bytes(50))


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"BitsStored": 17}, "17 Bits Stored of 16 Bits Allocated"),
        ({"BitsAllocated": 12}, "12 Bits Allocated"),
        ({"BitsAllocated": 32}, "32 Bits Allocated"),
        ({"PhotometricInterpretation": ""}, "Photometric Interpretation ''"),
        ({"PhotometricInterpretation": "ARGB"}, "Photometric Interpretation 'ARGB'"),
        ({"SamplesPerPixel": 3}, "3 samples a pixel and is MONOCHROME2"),
    ],
)
def test_a_refusal_names_the_element(elements, words):
    with pytest.raises(RadiographError, match=words):
        read(image(WORDS, 12, **elements))


# Frames


@pytest.mark.parametrize("count", [2, 3])
def test_frames_are_counted_where_the_header_does_not(count):
    made = image(np.concatenate([BYTES] * count))
    made.Rows = len(BYTES)
    with pytest.raises(RadiographError, match=f"{count} frames") as caught:
        read(made)
    assert caught.value.reason == SEVERAL_FRAMES


@pytest.mark.parametrize("number", [None, 1])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("syntax", [*ENCODERS, RLELossless, JPEGBaseline8Bit])
def test_several_codestreams_are_several_frames(syntax, fragments, table, number):
    """Where neither table nor header counts them, too; one codestream in several fragments is one frame."""
    frame = (
        rle(WORDS)
        if syntax == RLELossless
        else imagecodecs.jpeg8_encode(BYTES, level=100)
        if syntax == JPEGBaseline8Bit
        else ENCODERS[syntax](WORDS, 12)
    )
    made = image(BYTES) if syntax == JPEGBaseline8Bit else image(WORDS, 12)
    if number is not None:
        made.NumberOfFrames = number
    assert dicom.parse(saved(made, syntax, frame, fragments=fragments, table=table), "a.dcm").image.shape == WORDS.shape
    with pytest.raises(RadiographError, match=r"has .* frames") as caught:
        dicom.parse(saved(made, syntax, frame, frame, fragments=fragments, table=table), "a.dcm")
    assert caught.value.reason == SEVERAL_FRAMES


@pytest.mark.parametrize("between", [b"", b"\0", bytes(7)])
def test_several_codestreams_in_one_fragment(between, tmp_path):
    frame = imagecodecs.jpeg8_encode(BYTES, level=100)
    dicom.write(tmp_path / "plain.dcm", BYTES, "1.2.3")
    plain = pydicom.dcmread(tmp_path / "plain.dcm")
    for made in (image(BYTES), plain):
        assert read(made, JPEGBaseline8Bit, frame + between).image.shape == BYTES.shape
        with pytest.raises(RadiographError, match="several frames"):
            read(made, JPEGBaseline8Bit, frame + between + frame)


# A sign that contradicts the header


def two_signs(values: np.ndarray, bits: int, stream_signed: bool, header_signed: bool) -> dicom.Radiograph:
    """Values, or their bits as they are, in a JPEG 2000 with one sign under a header with the other."""
    kinds = {True: "<i2", False: "<u2"}
    patterns = values & 2**bits - 1
    stream = np.where(patterns >> (bits - 1), patterns - 2**bits, patterns) if stream_signed else patterns
    frame = imagecodecs.jpeg2k_encode(
        stream.astype(kinds[stream_signed]), level=0, codecformat="j2k", bitspersample=bits
    )
    made = image(WORDS, bits, PixelRepresentation=int(header_signed))
    return read(made, JPEG2000Lossless, frame)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("stream_signed", [False, True])
@pytest.mark.parametrize("values_signed", [False, True])
def test_the_sign_with_which_neighbouring_values_are_similar_counts(values_signed, stream_signed, bits):
    values = np.rint(SHARE * (2**bits - 1)).astype(int) - (2 ** (bits - 1) if values_signed else 0)
    radiograph = two_signs(values, bits, stream_signed, not stream_signed)
    assert close(radiograph.image, stretched(values))
    header, stream = int(not stream_signed), "signed" if stream_signed else "unsigned"
    assert radiograph.remarks == (
        f"Pixel Representation is {header}, the compressed pixels are {stream}: "
        f"they are read as {'signed' if values_signed else 'unsigned'}",
    )


@pytest.mark.parametrize("stream_signed", [False, True])
def test_either_side_may_say_that_values_are_negative(stream_signed):
    values = np.rint(SHARE * 900).astype(int) - 1000
    made = two_signs(values, 12, stream_signed, not stream_signed)
    assert close(made.image, stretched(values))
    assert made.remarks[0].endswith("they are read as signed")


@pytest.mark.parametrize("signed", [False, True])
def test_equal_signs_are_no_remark(signed):
    values = np.rint(SHARE * 4000).astype(int) - (2000 if signed else 0)
    radiograph = two_signs(values, 12, signed, signed)
    assert close(radiograph.image, stretched(values))
    assert not radiograph.remarks


# Without preamble, meta information, transfer syntax


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("preamble", [False, True])
def test_a_data_set_alone_is_read_as_what_it_parses_as(implicit, preamble):
    made = image(WORDS, 12)
    del made.file_meta
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, made, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    data = (bytes(128) + b"DICM" if preamble else b"") + buffer.getvalue()
    radiograph = dicom.parse_image(data, "a.dcm")
    assert close(radiograph.image, stretched(WORDS))
    name = "Implicit" if implicit else "Explicit"
    assert radiograph.remarks == (f"Transfer Syntax UID is missing; it is read as {name} VR Little Endian",)


def test_compressed_pixels_need_a_transfer_syntax():
    made = image(WORDS, 12)
    data = saved(made, JPEG2000Lossless, ENCODERS[JPEG2000Lossless](WORDS, 12))
    start = 144 + int.from_bytes(data[140:144], "little")
    with pytest.raises(RadiographError, match="no Transfer Syntax UID"):
        dicom.parse_image(data[start:], "a.dcm")


@pytest.mark.parametrize("data", [b"\x08\0", b"\x08\0\x05\0" + bytes(400), b"\x02\0\x10\0UI" + b"1" * 300])
def test_what_only_begins_like_a_data_set_is_refused(data):
    with pytest.raises(RadiographError):
        dicom.parse_image(data, "a.dcm")


# Grey as colour

RGB = np.repeat(BYTES[..., None], 3, 2)


def colour(photometric: str = "RGB", planar: int = 0, pixels: np.ndarray = RGB) -> Dataset:
    made = image(BYTES, photometric=photometric, SamplesPerPixel=3, PlanarConfiguration=planar)
    made.PixelData = (pixels.transpose(2, 0, 1) if planar else pixels).tobytes()
    return made


@pytest.mark.parametrize("planar", [0, 1])
def test_grey_stored_as_rgb(planar):
    assert np.array_equal(read(colour(planar=planar)).image, BYTES)


def test_grey_stored_as_ybr():
    neutral = np.stack([BYTES, np.full_like(BYTES, 128), np.full_like(BYTES, 128)], -1)
    assert np.array_equal(read(colour("YBR_FULL", pixels=neutral)).image, BYTES)


@pytest.mark.parametrize(
    ("photometric", "syntax", "frame"),
    [
        ("YBR_FULL_422", JPEGBaseline8Bit, imagecodecs.jpeg8_encode(RGB, level=100)),
        ("RGB", JPEGBaseline8Bit, imagecodecs.jpeg8_encode(RGB, level=100, colorspace="RGB", outcolorspace="RGB")),
        ("YBR_RCT", JPEG2000Lossless, imagecodecs.jpeg2k_encode(RGB, level=0, codecformat="j2k")),
        ("RGB", RLELossless, rle(RGB, "RGB")),
        ("RGB", JPEGLSLossless, imagecodecs.jpegls_encode(RGB)),
    ],
)
def test_grey_compressed_as_colour(photometric, syntax, frame):
    shown = read(colour(photometric), syntax, frame).image
    assert np.abs(shown.astype(int) - BYTES).max() <= (1 if syntax == JPEGBaseline8Bit else 0)


def palette(scale: tuple[int, int, int], bits: int) -> Dataset:
    made = image(BYTES, photometric="PALETTE COLOR")
    for name, factor in zip(("Red", "Green", "Blue"), scale, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        entries = (np.arange(256) * factor).astype("<u2" if bits == 16 else "u1")
        setattr(made, f"{name}PaletteColorLookupTableData", entries.tobytes())
    return made


@pytest.mark.parametrize(("scale", "bits"), [((257,) * 3, 16), ((1,) * 3, 8)])
def test_grey_stored_with_a_palette(scale, bits):
    assert np.array_equal(read(palette(scale, bits)).image, BYTES)


@pytest.mark.parametrize("made", [colour(pixels=RGB + np.uint8([0, 1, 0])), palette((257, 256, 257), 16)])
def test_true_colour_is_refused(made):
    with pytest.raises(RadiographError, match="colour image") as caught:
        read(made)
    assert caught.value.reason == COLOUR


def test_implicit_vr_reads_the_same():
    assert close(read(image(WORDS, 12), ImplicitVRLittleEndian).image, stretched(WORDS))
