"""Synthetic radiographs, drawn and written as real DICOM files."""
