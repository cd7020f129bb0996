"""Radiographs in and out of DICOM, PNG and JPEG files."""
